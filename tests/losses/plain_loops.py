"""Every loss again, as slowly and plainly as possible: Python floats (64 bits), `math`, loops over lists, no torch.

Written from the papers' formulas, not from the code under test; nothing here is shared with it.
"""

import math


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def sigmoid(x):
    return math.exp(log_sigmoid(x))


def log_softmax(logits):
    top = max(logits)
    log_total = top + math.log(math.fsum(math.exp(z - top) for z in logits))
    return [z - log_total for z in logits]


def token_logps(logits, labels):
    """One record: logits [T+1][V], labels [T+1] -> [T]. Position t of the result is the token labels[t + 1]."""
    return [0.0 if labels[t + 1] == -100 else log_softmax(logits[t])[labels[t + 1]] for t in range(len(labels) - 1)]


def kl(policy_logits, reference_logits):
    """KL(reference || policy) at one position."""
    log_pi, log_ref = log_softmax(policy_logits), log_softmax(reference_logits)
    return math.fsum(math.exp(r) * (r - p) for p, r in zip(log_pi, log_ref, strict=True) if r > -math.inf)


def total(values, weight):
    return math.fsum(v * w for v, w in zip(values, weight, strict=True) if w != 0)


def mean(values, weight):
    return total(values, weight) / math.fsum(weight)


def sepo(chosen_logps, chosen_weight, rejected_logps, rejected_weight, gamma, margin):
    u_w = gamma * mean(chosen_logps, chosen_weight)
    u_l = gamma * mean(rejected_logps, rejected_weight)
    return -log_sigmoid(u_w - u_l - margin)


def preference(objective, chosen, rejected, beta, alpha, side=0, length_normalized=False):
    """One pair; chosen and rejected are (policy logps, reference logps, kl, weight), all [T]."""
    add = mean if length_normalized else total

    def m_and_d(response):
        policy, reference, kls, weight = response
        return add([p - r for p, r in zip(policy, reference, strict=True)], weight), add(kls, weight)

    m_w, d_w = (0.0, 0.0) if side == -1 else m_and_d(chosen)
    m_l, d_l = (0.0, 0.0) if side == 1 else m_and_d(rejected)
    margin = {
        "tdpo1": (m_w - m_l) - (d_l - d_w),
        "tdpo2": (m_w - m_l) - alpha * (d_l - d_w),
        "dpo": m_w - m_l,
    }[objective]
    return -log_sigmoid(beta * margin)


def rank(rewards, scores, present, linear=False, margins=False):
    """One record of R responses: (sum over the ordered pairs, number of pairs)."""
    losses = [
        -(rewards[i] - rewards[j])
        if linear
        else -log_sigmoid(rewards[i] - rewards[j] - (scores[i] - scores[j] if margins else 0))
        for i in range(len(rewards))
        for j in range(len(rewards))
        if present[i] and present[j] and scores[i] > scores[j]
    ]
    return math.fsum(losses), len(losses)


def apo_rm(rewards, scores, present, is_apo, kl_coeff, apo_coeff, samples, kind, normalization):
    """The loss of a batch, a single number."""
    parts = {False: [], True: []}
    for r, s, p, apo in zip(rewards, scores, present, is_apo, strict=True):
        parts[apo].append(rank(r, s, p, linear=apo and kind == "wgan"))

    def part(kept):
        if normalization == "released":
            return sum(t for t, _ in kept) / sum(n for both in parts.values() for _, n in both)
        means = [t / n for t, n in kept if n]
        return sum(means) / len(means) if means else 0.0

    return kl_coeff * part(parts[False]) + apo_coeff / samples * part(parts[True])


def kto(log_ratio, desirable, z0, beta, desirable_weight, undesirable_weight):
    if desirable:
        return desirable_weight * (1 - sigmoid(beta * (log_ratio - z0)))
    return undesirable_weight * (1 - sigmoid(beta * (z0 - log_ratio)))


def weighted_dpo(chosen, rejected, beta):
    """One pair; chosen and rejected are (policy logps, reference logps, weights), all [T]; weights may be negative."""
    m_w, m_l = (math.fsum(w * (p - r) for p, r, w in zip(*side, strict=True) if w != 0) for side in (chosen, rejected))
    return -log_sigmoid(beta * (m_w - m_l))


def tgdpo_weights(guide, reference, beta, alpha, sign):
    return [1 + sign * alpha * beta * (g - r) for g, r in zip(guide, reference, strict=True)]


def tis_weights(scores, k, low, high, sign):
    return [k * math.exp(sign * max(low, min(high, s))) for s in scores]


def by_rank(scores, low, high):
    """Signed scores of the ranked tokens -> weights, by counting who is below or equal and earlier."""
    n = len(scores)
    if n == 1:
        return [1.0]
    ranks = [sum((b, j) < (a, i) for j, b in enumerate(scores)) for i, a in enumerate(scores)]
    return [low + (high - low) * rank / (n - 1) for rank in ranks]


def scaled(scores, low, high, scale_low, scale_high):
    return [scale_low + (scale_high - scale_low) * (min(max(s, low), high) - low) / (high - low) for s in scores]


def top_share(scores, share):
    """1 for the int(share n) tokens of the highest scores, ties to the earlier token."""
    n = len(scores)
    return [float(sum((-b, j) < (-a, i) for j, b in enumerate(scores)) < int(share * n)) for i, a in enumerate(scores)]


def contrast(right, wrong, label, b):
    """s_t at one position, from two lists of logits."""
    mixed = [(1 + b) * p - b * n for p, n in zip(right, wrong, strict=True)]
    return math.exp(log_softmax(mixed)[label])


def length_weights(length, other, alpha):
    return [1.0] * min(length, other) + [alpha] * (length - min(length, other))


def confpo(chosen, rejected, beta, gamma, strict):
    """Chosen and rejected are (logps, weight), both [T]; 0 if a side selects nothing."""
    means = []
    for logps, weight in (chosen, rejected):
        total_weight = math.fsum(weight)
        mean_probability = math.fsum(w * math.exp(p) for p, w in zip(logps, weight, strict=True)) / total_weight
        picked = [
            (p, w)
            for p, w in zip(logps, weight, strict=True)
            if w > 0 and (math.exp(p) < mean_probability or (not strict and math.exp(p) == mean_probability))
        ]
        if not picked:
            return 0.0
        means.append(math.fsum(p * w for p, w in picked) / math.fsum(w for _, w in picked))
    return -log_sigmoid(beta * (means[0] - means[1]) - gamma)


def simper(chosen, rejected):
    return math.exp(mean(*rejected)) - math.exp(mean(*chosen))


def plackett_luce(rewards, scores, present, ties):
    """One list: the sum of -log of each response's share among its rivals, and whether any two compete."""
    there = [i for i in range(len(rewards)) if present[i]]
    terms, competes = [], False
    for k in there:
        rivals = [
            j for j in there if j != k and (scores[j] < scores[k] or (ties == "breslow" and scores[j] == scores[k]))
        ]
        competes = competes or bool(rivals)
        group = [rewards[k], *(rewards[j] for j in rivals)]
        top = max(group)
        terms.append(top + math.log(math.fsum(math.exp(r - top) for r in group)) - rewards[k])
    return (math.fsum(terms), competes) if competes else (0.0, False)
