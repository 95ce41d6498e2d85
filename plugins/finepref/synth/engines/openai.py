"""The remote engine: any endpoint with the OpenAI chat completions API, for example `vllm serve`."""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from finepref.formats.records import split_tools
from finepref.formats.row import is_unicode
from finepref.synth.engines.checkpoint import chat_messages, chat_tools
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.thoughts import ONLY_REASONING

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_TRIES = 5
"""Most tries of a request before it counts as failed."""
GIVE_UP_AFTER = 20
"""After this many failures in a row the endpoint counts as down, and the other requests are not sent."""
MAX_BODY = 64 * 2**20
"""The longest reply that is accepted, in bytes."""


class OpenAIEngine:
    """A model behind an endpoint.

    A request is sent at most 5 times: it is retried after 408, 409, 429, 5xx and lost connections, after the server's
    Retry-After if that is at most two minutes. Redirects are not followed, so that neither key nor data reach another
    host. The key comes from OPENAI_API_KEY only; the key and secrets in the address are removed from all error texts.

    Args:
        model: the model's name at the endpoint.
        base_url: such as http://localhost:8000/v1.
        concurrency: requests at a time.
        timeout: seconds for one try, also if the reply arrives slowly, piece by piece.
        variables: of the chat template, which vLLM and SGLang pass on to it.

    Raises:
        ValueError: `base_url` is not an address (the error does not repeat it, as it may contain a secret).
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        concurrency: int = 16,
        timeout: float = 600.0,
        variables: Mapping[str, object] | None = None,
    ) -> None:
        self.model = f"openai:{model}"
        self.name = model
        self.base_url = base_url
        self.concurrency = concurrency
        self.timeout = timeout
        self.variables = {"chat_template_kwargs": dict(variables)} if variables else {}
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._secrets = [self._key, *_secrets(base_url)]

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Send `concurrency` requests at a time and yield answers as they arrive."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        todo, under_way, failures = iter(requests), set[asyncio.Task[Completion]](), 0
        loop = asyncio.new_event_loop()
        client = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=MAX_TRIES - 1,
            timeout=self.timeout,
            http_client=DefaultAsyncHttpxClient(
                follow_redirects=False, timeout=self.timeout, event_hooks={"response": [self._bound]}
            ),
        )
        try:
            while True:
                while len(under_way) < self.concurrency and failures < GIVE_UP_AFTER:
                    if (request := next(todo, None)) is None:
                        break
                    under_way.add(loop.create_task(self._ask(client, request)))
                if not under_way:
                    break
                some = asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                finished, under_way = loop.run_until_complete(some)
                answers = [task.result() for task in finished]
                for answer in answers:
                    failures = failures + 1 if answer.error else 0
                yield answers
            for request in todo:
                yield [Completion(request.id, error=f"not sent: {GIVE_UP_AFTER} requests in a row had failed")]
        finally:
            loop.run_until_complete(_close(client, under_way))
            loop.close()

    async def _ask(self, client: AsyncOpenAI, request: Request) -> Completion:
        from openai import APIStatusError, OpenAIError

        tools = chat_tools(split_tools(request.messages)[0])
        try:
            reply = await client.chat.completions.create(
                model=self.name,
                messages=chat_messages(request.messages, as_text=True),
                max_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                extra_body=_extensions(request) | self.variables,
                **({"tools": tools} if tools else {}),
                **({"seed": request.seed} if request.temperature else {}),
            )
        except APIStatusError as error:
            return self._failed(request, f"HTTP {error.status_code}: {error.message}")
        except (OpenAIError, ValueError, RecursionError) as error:  # the last two: the body is not JSON
            cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
            return self._failed(request, f"{type(error).__name__}: {error}{cause}")
        return _completion(request.id, reply)

    async def _bound(self, response: Any) -> None:
        """Limit the body of a reply, in size and in time."""
        response.stream = _bounded(response.stream, seconds=self.timeout)

    def _failed(self, request: Request, reason: str) -> Completion:
        for secret in filter(None, self._secrets):
            reason = reason.replace(secret, "***")
        return Completion(request.id, error=" ".join(reason.split())[:300])


def _secrets(base_url: str) -> list[str]:
    """The secrets in an address: the password and the values of its query, as written and decoded."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or (parts.port or 1) < 1:
            raise ValueError
    except ValueError:
        raise ValueError("the address of the endpoint is not an http or https address with a host") from None
    password = parts.password or ""
    return [password, unquote(password), parts.query, *(value for _, value in parse_qsl(parts.query))]


def _bounded(stream: Any, *, seconds: float) -> Any:
    """The stream of a body that raises an error after MAX_BODY bytes or `seconds`."""
    from openai import OpenAIError

    http = importlib.import_module(type(stream).__module__.partition(".")[0])  # httpx or httpx2, whichever openai uses
    until = time.monotonic() + seconds

    class Bounded(http.AsyncByteStream):  # type: ignore[name-defined, misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                size += len(chunk)
                if size > MAX_BODY:
                    raise OpenAIError(f"the reply is longer than {MAX_BODY} bytes")
                if time.monotonic() > until:
                    raise http.ReadTimeout(f"the reply took longer than {seconds:g} seconds")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


async def _close(client: AsyncOpenAI, tasks: Iterable[asyncio.Task[Completion]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


def _extensions(request: Request) -> dict[str, Any]:
    """Fields of vLLM and SGLang beyond OpenAI's, sent only if they are set."""
    top_k = {"top_k": request.top_k} if request.top_k else {}
    penalty = {"repetition_penalty": request.repetition_penalty} if request.repetition_penalty != 1 else {}
    return top_k | penalty


def _reasoning(message: object) -> Iterator[bool]:
    """Whether a message has a text in one of the fields that servers use for reasoning."""
    for name in ("reasoning_content", "reasoning"):
        value = getattr(message, name, None)
        yield isinstance(value, str) and bool(value.strip())


def _completion(request_id: str, reply: object) -> Completion:
    """A completion from a reply; its structure is checked here, because the client does not."""
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion import Choice

    if not isinstance(reply, ChatCompletion):
        return Completion(request_id, error="the reply is not a chat completion")
    if not isinstance(reply.choices, list) or not reply.choices or not isinstance(reply.choices[0], Choice):
        return Completion(request_id, error="the reply has no choices")
    choice = reply.choices[0]
    content = getattr(choice.message, "content", None)
    if content is not None and not isinstance(content, str):
        return Completion(request_id, error="the content of the reply is not a text")
    if content and not is_unicode(content):
        return Completion(request_id, error="the content of the reply has a lone surrogate")
    refusal = getattr(choice.message, "refusal", None)
    if not content and isinstance(refusal, str) and is_unicode(refusal):
        content = refusal  # a refusal is an answer; it is not told apart by its place
    if not (content or "").strip() and getattr(choice.message, "tool_calls", None):
        return Completion(request_id, error="the reply calls functions and has no text")
    if not (content or "").strip() and any(_reasoning(choice.message)):
        return Completion(request_id, error=f"{ONLY_REASONING} (stop reason: {choice.finish_reason})")
    used = [getattr(reply.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else 0 for count in used)
    return Completion(request_id, content or "", str(choice.finish_reason), prompt_tokens, completion_tokens)
