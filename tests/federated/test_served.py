"""Clients over loopback HTTP: who they are is checked, answers count once, and no sample is on the wire."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clouds import SGD, federation

from equipoise.errors import InputError
from equipoise.federated.client import Client, DiedError
from equipoise.federated.messages import Message, packed
from equipoise.federated.remote import Link, work
from equipoise.federated.rounds import one_round
from equipoise.federated.served import Served
from equipoise.federated.terms import Faults
from equipoise.federated.transport import InProcess, Reply
from equipoise.workloads import Split

QUESTION = Message("train", {"round": 0, "attempt": 0, "client": 0, "nonce": "right", "since": -1}, {"w": torch.ones(3)})
ANSWER = Message("update", {"round": 0, "client": 0, "nonce": "right"}, {"w": torch.ones(3)})


@contextmanager
def listening(tokens: dict[int, str], **how: object) -> Iterator[Served]:
    served = Served.listening(tokens, **how)  # type: ignore[arg-type]
    try:
        yield served
    finally:
        served.close()


@contextmanager
def working(clients: dict[int, Client], **how: object) -> Iterator[Served]:
    """Every client in a thread of its own that talks real HTTP."""
    tokens = {number: f"secret-{number}" for number in clients}
    with listening(tokens, **how) as served:
        dead: set[int] = set()
        served.gone = lambda client: "its process ended" if client in dead else ""

        def run(number: int) -> None:
            while not served.board.over:
                try:
                    work(Link(f"http://127.0.0.1:{served.port}", tokens[number]), clients[number].handle)
                except DiedError:
                    dead.add(number)
                    time.sleep(0.3)
                    dead.discard(number)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in clients]
        for thread in threads:
            thread.start()
        yield served
    for thread in threads:
        thread.join(10)


def test_over_http_it_is_what_it_is_in_one_process() -> None:
    hall, server, clients, _ = federation(recipe=SGD)
    here, there = server, server
    transport = InProcess({number: client.handle for number, client in clients.items()})
    with working(clients) as served:
        for _ in range(2):
            here, shares = one_round(hall, here, transport)
            there, others = one_round(hall, there, served)
            assert not any(share.lost for share in others)
            assert abs(sum(s.up_bytes for s in shares) - sum(s.up_bytes for s in others)) < 40  # of the seconds that are told
    assert all(torch.equal(here.weights[name], value) for name, value in there.weights.items())


def test_masked_rounds_and_the_dead_go_over_http_too() -> None:
    hall, server, clients, _ = federation(clients=5, recipe=SGD, secure=True, faults=Faults(die=0.2), seed=3)
    with working(clients) as served:
        for _ in range(3):
            server, _ = one_round(hall, server, served)
    assert server.round == 3


def samples_in(wire: list[bytes], split: Split) -> int:
    """How many training samples are among all that was sent, as the bytes of their numbers or as text."""
    inputs, _ = split.tensors()
    stream = b"".join(wire)
    assert isinstance(inputs, torch.Tensor)
    told = stream.replace(b" ", b"")
    return sum(row.numpy().tobytes() in stream or ",".join(map(str, row.tolist())).encode() in told for row in inputs)


class Leaks:
    """A client that hides two of its samples in what it sends: one in a tensor, one in the header."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def handle(self, asked: Message) -> Message:
        answer = self.client.handle(asked)
        inputs, _ = self.client.data.tensors()  # type: ignore[attr-defined]
        tensors = {name: value.clone() for name, value in answer.tensors.items()}
        for value in [tensor.view(-1) for tensor in tensors.values() if tensor.is_floating_point() and tensor.numel() > 50]:
            value[: inputs[0].numel()] = inputs[0].flatten()
        return replace(answer, facts={**answer.facts, "hint": inputs[1].flatten().tolist()}, tensors=tensors)


@pytest.mark.parametrize("leaks", [False, True])
@pytest.mark.parametrize("secure", [False, True])
def test_no_training_sample_goes_over_the_wire(secure: bool, leaks: bool) -> None:
    hall, server, clients, task = federation(recipe=SGD, secure=secure)
    told = {**clients, **({2: Leaks(clients[2])} if leaks else {})}
    with working(told) as served:  # type: ignore[arg-type]
        served.board.wire = []
        for _ in range(2):
            server, _ = one_round(hall, server, served)
        wire = list(served.board.wire)
    assert len(wire) == 2 * 4 * 2 * (4 if secure else 1)  # questions and answers, stage by stage
    assert samples_in(wire, task.train) == (0 if not leaks else 1 if secure else 2)  # of masked changes the header alone leaks


def test_an_answer_counts_once_in_time_and_to_its_own_question() -> None:
    with listening({0: "a", 1: "b"}) as served:
        link, other = Link(f"http://127.0.0.1:{served.port}", "a"), Link(f"http://127.0.0.1:{served.port}", "b")
        assert link.call("/answer", packed(ANSWER))[0] == 409  # nothing was asked
        found: dict[int, Reply] = {}
        thread = threading.Thread(target=lambda: found.update(served.ask({0: QUESTION}, most=10_000, limit_s=20)))
        thread.start()
        assert link.call("/question")[0] == 200
        assert other.call("/answer", packed(ANSWER))[0] == 409  # another client's question
        stale = replace(ANSWER, facts={**ANSWER.facts, "nonce": "of an earlier round"})
        assert link.call("/answer", packed(stale))[0] == 409
        assert thread.is_alive()
        assert link.call("/answer", packed(ANSWER))[0] == 200
        assert link.call("/answer", packed(ANSWER))[0] == 409  # a second time
        thread.join(20)
        assert found[0].message is not None
        assert found[0].up_bytes == len(packed(ANSWER))
        assert len(served.board.refused) == 4


@pytest.mark.parametrize(("token", "status"), [("wrong", 401), ("", 401), ("a" * 5000, 401), ("a", 204)])
def test_a_token_says_who_it_is(token: str, status: int) -> None:
    with listening({0: "a"}) as served:
        assert Link(f"http://127.0.0.1:{served.port}", token).call("/question")[0] == status
        assert Link(f"http://127.0.0.1:{served.port}", token).call("/answer", b"x")[0] == (401 if status == 401 else 409)


def test_a_client_with_a_wrong_token_ends_with_one_clear_error() -> None:
    with listening({0: "a"}) as served, pytest.raises(InputError, match="token must be one that the server knows"):
        work(Link(f"http://127.0.0.1:{served.port}", "b"), lambda asked: asked)


def test_a_body_that_is_too_long_is_not_read() -> None:
    with listening({0: "a"}) as served:
        found: dict[int, Reply] = {}
        thread = threading.Thread(target=lambda: found.update(served.ask({0: QUESTION}, most=100, limit_s=3)))
        thread.start()
        assert Link(f"http://127.0.0.1:{served.port}", "a").call("/question")[0] == 200
        for length, status in (("101", 413), ("999999999999", 413), ("-1", 411), ("many", 411), (None, 411)):
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
            connection.putrequest("POST", "/answer")
            connection.putheader("Authorization", "Bearer a")
            if length is not None:
                connection.putheader("Content-Length", length)
            connection.endheaders()  # and not one byte of a body
            assert connection.getresponse().status in (status, 411), length
            connection.close()
        thread.join(20)
        assert "it was late" in found[0].lost


def test_bytes_that_are_no_message_cost_the_client_its_share() -> None:
    with listening({0: "a"}) as served:
        found: dict[int, Reply] = {}
        thread = threading.Thread(target=lambda: found.update(served.ask({0: QUESTION}, most=10_000, limit_s=20)))
        thread.start()
        link = Link(f"http://127.0.0.1:{served.port}", "a")
        assert link.call("/question")[0] == 200
        assert link.call("/answer", b"no message")[0] == 409
        thread.join(20)
        assert "message must be one that begins with EQF1" in found[0].lost


def test_a_port_in_use_is_told() -> None:
    with listening({0: "a"}) as served, pytest.raises(InputError, match="port must be free"):
        Served.listening({0: "a"}, port=served.port)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    try:
        done = subprocess.run(
            ["openssl", *words.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, capture_output=True, timeout=60
        )
    except OSError:
        pytest.skip("openssl is not installed: there is nothing to make a certificate with")
    if done.returncode:
        pytest.skip(f"openssl made no certificate: {done.stderr[-200:]!r}")
    return folder / "cert.pem", folder / "key.pem"


def test_over_tls_a_client_trusts_the_given_certificate_alone(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with listening({0: "a"}, tls=context) as served:
        url = f"https://127.0.0.1:{served.port}"
        assert Link(url, "a", str(certificate[0])).call("/question")[0] == 204
        with pytest.raises(InputError, match="server must be one with a certificate that is trusted"):
            work(Link(url, "a"), lambda asked: asked)
