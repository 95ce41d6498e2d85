"""The remote engine against a small server that misbehaves in one way per request."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from finepref.formats.records import Message
from finepref.synth.ask import ask_stream
from finepref.synth.engines.openai import GIVE_UP_AFTER, MAX_TRIES, OpenAIEngine
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.journal import Journal

KEY = "sk-a-very-secret-key"


def chat(content: object = "fine", finish_reason: str = "stop", **more: object) -> dict:
    message = {"role": "assistant", "content": content}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    } | more


class Endpoint(ThreadingHTTPServer):
    """Answers by the user's text, the name of a fault; notes every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.tries: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.elsewhere = ""

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fault = request["messages"][-1]["content"].partition(" ")[0]
        with server.lock:
            server.requests.append(request)
            server.headers.append(dict(self.headers))
            server.tries[request["messages"][-1]["content"]] += 1
            attempt = server.tries[request["messages"][-1]["content"]]
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.respond(fault, attempt)
        finally:
            with server.lock:
                server.under_way -= 1

    def respond(self, fault: str, attempt: int) -> None:
        retry = {"retry-after": "0.01"}
        match fault:
            case "429-twice" if attempt <= 2:
                self.send(429, {"error": {"message": "slow down"}}, **retry)
            case "500":
                self.send(500, {"error": {"message": "broken"}}, **retry)
            case "401":
                self.send(401, {"error": {"message": f"Incorrect API key provided: {KEY}."}})
            case "400":
                self.send(400, {"error": {"message": "the context is too long"}})
            case "html":
                self.send(200, "<html>Sign in</html>", content_type="text/html")
            case "truncated":
                self.send(200, json.dumps(chat())[:-40])
            case "hang-up":
                self.close_connection = True
            case "length":
                self.send(200, chat("fi", "length"))
            case "no-choices":
                self.send(200, chat(choices=[]))
            case "null-choices":
                self.send(200, chat(choices=None))
            case "odd-choices":
                self.send(200, chat(choices=["fine"]))
            case "null-content":
                self.send(200, chat(None))
            case "odd-content":
                self.send(200, chat([{"type": "text", "text": "fine"}]))
            case "calls":
                call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                body = chat(None, "tool_calls")
                body["choices"][0]["message"]["tool_calls"] = [call]
                self.send(200, body)
            case "no-usage":
                self.send(200, chat(usage=None))
            case "list":
                self.send(200, [1, 2])
            case "redirect":
                self.send(307, "", location=self.server.elsewhere)
            case _:
                self.send(200, chat())

    def send(self, status: int, body: object, *, content_type: str = "application/json", **headers: str) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"content-type": content_type, "content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def requests(*texts: str, **more: object) -> list[Request]:
    return [Request(text, (Message("user", text),), 16, **more) for text in texts]


def completions(endpoint: Endpoint, *texts: str, concurrency: int = 16, **more: object) -> dict[str, Completion]:
    engine = OpenAIEngine("m", base_url=endpoint.url, concurrency=concurrency)
    return {each.id: each for batch in engine.generate(requests(*texts, **more)) for each in batch}


def test_an_answer_comes_with_its_stop_reason_and_its_tokens(endpoint):
    found = completions(endpoint, "a", "b")
    assert found == {text: Completion(text, "fine", "stop", 5, 2) for text in ("a", "b")}
    assert endpoint.requests[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": endpoint.requests[0]["messages"][0]["content"]}],
        "max_tokens": 16,
        "temperature": 0.0,
        "top_p": 1.0,
    }


def test_tools_and_their_turns_are_sent_as_the_endpoint_knows_them(endpoint):
    turns = (
        Message("tools", '[{"name": "f", "parameters": {}}]'),
        Message("user", "q"),
        Message("function_call", '{"name": "f", "arguments": {"a": 1}}'),
        Message("observation", "2"),
    )
    engine = OpenAIEngine("m", base_url=endpoint.url)
    ((answer,),) = engine.generate([Request("a", turns, 16)])
    assert answer.text == "fine"
    (sent,) = endpoint.requests
    assert sent["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    function = {"name": "f", "arguments": '{"a": 1}'}
    call = {"id": "call00000", "type": "function", "function": function}
    assert sent["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "call00000"},
    ]


def test_a_sample_is_asked_for_with_its_own_seed(endpoint):
    completions(endpoint, "a", temperature=0.7, seed=12)
    assert (endpoint.requests[0]["temperature"], endpoint.requests[0]["seed"]) == (0.7, 12)


def test_top_k_and_a_repetition_penalty_are_sent_only_where_they_are_asked_for(endpoint):
    completions(endpoint, "a", temperature=0.3, top_k=5, repetition_penalty=1.05)
    assert (endpoint.requests[0]["top_k"], endpoint.requests[0]["repetition_penalty"]) == (5, 1.05)


def test_429_is_tried_again_after_the_time_that_the_server_names(endpoint):
    assert completions(endpoint, "429-twice")["429-twice"].text == "fine"
    assert endpoint.tries["429-twice"] == 3


def test_500_is_tried_five_times_in_all(endpoint):
    error = completions(endpoint, "500")["500"].error
    assert error.startswith("HTTP 500: ")
    assert "broken" in error
    assert endpoint.tries["500"] == MAX_TRIES == 5


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("400", "HTTP 400: "),
        ("html", "the reply is not a chat completion"),
        ("truncated", "JSONDecodeError: "),
        ("no-choices", "the reply has no choices"),
        ("null-choices", "the reply has no choices"),
        ("odd-choices", "the reply has no choices"),
        ("odd-content", "the content of the reply is not a text"),
        ("list", "the reply is not a chat completion"),
        ("calls", "the reply calls functions and has no text"),
    ],
)
def test_a_reply_that_is_no_answer_is_an_error_of_its_own_request_and_is_not_repeated(endpoint, fault, told):
    found = completions(endpoint, fault, "good")
    assert found[fault].error.startswith(told)
    assert found[fault].text == ""
    assert found["good"].text == "fine"
    assert endpoint.tries[fault] == 1


def test_a_cut_or_empty_answer_is_an_answer(endpoint):
    found = completions(endpoint, "length", "null-content", "no-usage")
    assert found["length"] == Completion("length", "fi", "length", 5, 2)
    assert found["null-content"] == Completion("null-content", "", "stop", 5, 2)
    assert found["no-usage"] == Completion("no-usage", "fine", "stop")


def test_the_key_is_sent_and_never_told(endpoint):
    error = completions(endpoint, "401")["401"].error
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: ***" in error
    assert KEY not in error


def test_a_redirect_is_an_error_and_nothing_is_sent_elsewhere(endpoint):
    other = Endpoint()
    threading.Thread(target=other.serve_forever, daemon=True).start()
    endpoint.elsewhere = f"{other.url}/chat/completions"
    try:
        assert completions(endpoint, "redirect")["redirect"].error.startswith("HTTP 307")
        assert other.requests == []
    finally:
        other.shutdown()
        other.server_close()


def test_no_more_than_the_given_number_of_requests_are_under_way(endpoint):
    assert len(completions(endpoint, *map(str, range(30)), concurrency=3)) == 30
    assert endpoint.most_under_way <= 3


def test_an_endpoint_that_is_down_is_given_up_and_every_request_is_answered_for(endpoint):
    found = completions(endpoint, *(f"400 {i}" for i in range(60)), concurrency=4)
    assert len(found) == 60
    assert all(each.error for each in found.values())
    assert GIVE_UP_AFTER <= len(endpoint.requests) < GIVE_UP_AFTER + 4
    assert found["400 59"].error == "not sent: 20 requests in a row had failed"


def test_failures_between_answers_are_no_reason_to_give_up(endpoint):
    texts = [text for i in range(30) for text in (f"400 {i}", f"good {i}")]
    found = completions(endpoint, *texts, concurrency=1)
    assert sum(each.error is None for each in found.values()) == 30


def test_an_endpoint_that_nobody_serves_is_an_error_of_each_request(endpoint, monkeypatch):
    monkeypatch.setattr("finepref.synth.engines.openai.MAX_TRIES", 1)
    engine = OpenAIEngine("m", base_url="http://127.0.0.1:9/v1")
    (completion,) = [each for batch in engine.generate(requests("a")) for each in batch]
    assert completion.error.startswith("APIConnectionError: Connection error.")


def test_a_server_that_hangs_up_is_tried_again_and_then_an_error(endpoint, monkeypatch):
    monkeypatch.setattr("finepref.synth.engines.openai.MAX_TRIES", 2)
    assert completions(endpoint, "hang-up")["hang-up"].error.startswith("APIConnectionError: Connection error.")
    assert endpoint.tries["hang-up"] == 2


def test_ask_journals_answers_and_not_failures_and_asks_only_what_is_left(endpoint, tmp_path):
    job = {"job": "t", "model": "m", "prompt_version": "1", "sampling": {}, "seed": 0, "input_digest": ""}
    engine = OpenAIEngine("m", base_url=endpoint.url)
    with Journal(tmp_path, **job) as journal:
        found = {each.id: each for each in ask_stream(requests("a", "400", "b"), engine=engine, journal=journal)}
        assert {*found} == {"a", "400", "b"}
        assert {*journal.done} == {"a", "b"}
    endpoint.requests.clear()
    with Journal(tmp_path, **job) as journal:
        again = {each.id: each for each in ask_stream(requests("a", "400", "b", "c"), engine=engine, journal=journal)}
    assert {request["messages"][0]["content"] for request in endpoint.requests} == {"400", "c"}
    assert again["a"] == found["a"]
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_caller_who_stops_early_leaves_nothing_running(endpoint):
    answers = OpenAIEngine("m", base_url=endpoint.url, concurrency=2).generate(requests(*map(str, range(50))))
    next(answers)
    answers.close()
    assert len(endpoint.requests) <= 6
