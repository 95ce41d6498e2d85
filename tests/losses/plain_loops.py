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
    return math.fsum(v * w for v, w in zip(values, weight, strict=True) if w > 0)


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


def rank(rewards, scores, present, linear=False):
    """One record of R responses: (sum over the ordered pairs, number of pairs)."""
    losses = [
        -(rewards[i] - rewards[j]) if linear else -log_sigmoid(rewards[i] - rewards[j])
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
