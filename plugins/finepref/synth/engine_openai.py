"""The remote engine: any endpoint that speaks the OpenAI chat completions API, for example `vllm serve`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from finepref.synth.engines import Completion, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_TRIES = 5
"""How often a request is sent before it counts as failed."""
GIVE_UP_AFTER = 20
"""After so many failures in a row the endpoint counts as down, and what is left is not sent."""


class OpenAIEngine:
    """A model behind an endpoint.

    A request is sent at most 5 times: 408, 409, 429, 5xx and lost connections are tried again, after the server's
    Retry-After where that is at most two minutes. Redirects are not followed, so that neither key nor data reach
    another host. The key comes from OPENAI_API_KEY only and is taken out of every error text.

    Args:
        model: the model's name at the endpoint.
        base_url: such as http://localhost:8000/v1.
        concurrency: requests under way at a time.
        timeout: seconds for one try.
    """

    def __init__(self, model: str, *, base_url: str, concurrency: int = 16, timeout: float = 600.0) -> None:
        self.model = f"openai:{model}"
        self.name = model
        self.base_url = base_url
        self.concurrency = concurrency
        self.timeout = timeout
        self._key = os.environ.get("OPENAI_API_KEY", "")

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Keep `concurrency` requests under way and yield answers as they come."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        todo, under_way, failures = iter(requests), set[asyncio.Task[Completion]](), 0
        loop = asyncio.new_event_loop()
        client = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=MAX_TRIES - 1,
            timeout=self.timeout,
            http_client=DefaultAsyncHttpxClient(follow_redirects=False, timeout=self.timeout),
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

        try:
            reply = await client.chat.completions.create(
                model=self.name,
                messages=[message._asdict() for message in request.messages],
                max_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                **({"seed": request.seed} if request.temperature else {}),
            )
        except APIStatusError as error:
            return self._failed(request, f"HTTP {error.status_code}: {error.message}")
        except (OpenAIError, ValueError) as error:  # ValueError: the body is not the JSON its header says
            return self._failed(request, f"{type(error).__name__}: {error}")
        return _completion(request.id, reply)

    def _failed(self, request: Request, reason: str) -> Completion:
        if self._key:
            reason = reason.replace(self._key, "***")
        return Completion(request.id, error=" ".join(reason.split())[:300])


async def _close(client: AsyncOpenAI, tasks: Iterable[asyncio.Task[Completion]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


def _completion(request_id: str, reply: object) -> Completion:
    """A completion from what the client made of a reply, whose shape the client does not check."""
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
    used = [getattr(reply.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else 0 for count in used)
    return Completion(request_id, content or "", str(choice.finish_reason), prompt_tokens, completion_tokens)
