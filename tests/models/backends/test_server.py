"""A server as captioner, over HTTP: what arrives there, what comes back, and what a failure comes to."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from chat_server import VLLM, Asked, ChatServer, Reply, caption, chat_server, failure, seen
from PIL import Image, JpegImagePlugin

from capfilt.draws import seed_of
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.layers import changed
from capfilt.models.api_client import ANSWER_BYTES
from capfilt.models.backends import backend
from capfilt.models.backends.answers import PROMPT, caption_of
from capfilt.models.backends.server import (
    ASKING,
    CONVENTIONS,
    ServerCaptioner,
    captioner,
    describe,
    is_address,
)
from capfilt.models.protocols import ImageBatch, TellingCaptioner, Written
from capfilt.records import Unfinished
from capfilt.settings import Decoding, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from capfilt.models.cards import Card

NUCLEUS = CONVENTIONS.decoding(Decoding())
GREEDY = CONVENTIONS.decoding(Decoding(method="greedy"))
QUICK = Server(backoff_s=0.001, timeout_s=20.0, image_format="png")
LLAMA = {"id": "/models/seer.gguf", "owned_by": "llamacpp", "meta": {"n_params": 7, "size": 4}}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def made(server: ChatServer, settings: Server = QUICK) -> ServerCaptioner:
    return captioner(Path("nowhere"), describe(server.url, settings), "cpu", "fp32")


def batch_of(*pictures: Image.Image) -> ImageBatch:
    return ImageBatch(pictures, [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures])


def plain(count: int) -> ImageBatch:
    """Return pictures of one colour each, every one another."""
    return batch_of(
        *(Image.new("RGB", (40, 40), (number, 2 * number, 255 - number)) for number in range(count))
    )


def written(batch: ImageBatch, picture: int, candidate: int, seed: int) -> str:
    """Return what the server must have said, by the documented key of a caption's seed."""
    red, green, blue = batch.pictures[picture].getpixel((0, 0))
    drawn = seed_of("caption", seed, batch.sha256[picture], candidate) % 2**31
    return f"a picture of {red} {green} {blue} by {drawn}"


# -- what a caption is


def test_each_caption_is_that_of_its_picture_and_its_own_seed_in_their_order(server: ChatServer) -> None:
    batch = plain(7)

    def slow_at_first(asked: Asked) -> Reply:
        # Those that were asked first answer last.
        time.sleep(0.02 * max(0, 8 - len(server.chats)))
        return seen(asked)

    server.answer = slow_at_first
    found = made(server).caption(batch, NUCLEUS, seed=5, candidates=3)
    assert found == [[written(batch, n, m, 5) for m in range(3)] for n in range(7)]
    seeds = [asked.body["seed"] for asked in server.chats]
    assert len(set(seeds)) == 21
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_caption_does_not_depend_on_what_else_is_asked(server: ChatServer) -> None:
    batch, model = plain(5), made(server)
    whole = model.caption(batch, NUCLEUS, seed=5, candidates=2)
    alone = ImageBatch(batch.pictures[3:4], batch.sha256[3:4])
    assert model.caption(alone, NUCLEUS, seed=5, candidates=1) == [whole[3][:1]]
    assert model.caption(alone, NUCLEUS, seed=6, candidates=2)[0] != whole[3]


def test_a_greedy_answer_is_asked_for_once_and_drawn_by_no_seed(server: ChatServer) -> None:
    batch = plain(2)
    found = made(server).caption(batch, GREEDY, seed=5, candidates=3)
    assert [len(mine) for mine in found] == [3, 3]
    assert [len(set(mine)) for mine in found] == [1, 1]
    assert len(server.chats) == 2
    assert all(asked.body["temperature"] == 0 for asked in server.chats)
    assert all("seed" not in asked.body and "top_p" not in asked.body for asked in server.chats)


def test_no_pictures_are_no_requests(server: ChatServer) -> None:
    assert made(server).caption(ImageBatch([], []), NUCLEUS, seed=0, candidates=2) == []
    assert server.chats == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("  A red square.\n", "A red square."),
        ("A red\n\n square\ton\r\nblue", "A red square on blue"),
        ("<think>It is red.\nOr not.</think>\n\nA red square.", "A red square."),
        ("<think>a</think>A red<think>b</think> square.", "A red square."),
        ("It is red, so\n</think>\n\nA red square.", "A red square."),
        ("<think>It goes on and on", ""),
        ("A\x00red\x1b[31m square\x7f\x85", "A red [31m square"),
        ("A red \ud800square\udfff", "A red square"),
        ("Ein rotes Quadrat: 红色 👩‍🎨", "Ein rotes Quadrat: 红色 👩‍🎨"),
        ("", ""),
    ],
)
def test_a_caption_is_one_line_without_thoughts_and_control_characters(answer: str, text: str) -> None:
    assert caption_of(answer) == text
    caption_of(answer).encode("utf-8")


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (caption(None, finish_reason="content_filter"), ""),
        (caption("", finish_reason="length"), ""),
        (caption("A red square on a", finish_reason="length"), "A red square on a"),
        (caption([{"type": "text", "text": "A red "}, {"type": "text", "text": "square."}]), "A red square."),
    ],
)
def test_an_answer_may_be_empty_cut_off_or_in_parts(server: ChatServer, reply: Reply, text: str) -> None:
    server.next_replies = [reply]
    assert made(server).caption(plain(1), NUCLEUS, seed=0, candidates=1) == [[text]]
    assert len(server.chats) == 1


# -- a picture that is refused


def red(asked: Asked) -> bool:
    """Whether it is the picture that a server here does not like."""
    return bool(asked.picture.getpixel((0, 0))[0] == 250)


def with_a_red_one(place: int, count: int = 5) -> ImageBatch:
    pictures = list(plain(count).pictures)
    pictures[place] = Image.new("RGB", (40, 40), (250, 0, 0))
    return batch_of(*pictures)


def no_red(status: int) -> Callable[[Asked], Reply]:
    return lambda asked: failure(status, "content policy violation") if red(asked) else seen(asked)


@pytest.mark.parametrize("status", [400, 403, 413, 422])
@pytest.mark.parametrize("place", [0, 3])
def test_a_picture_that_is_refused_alone_has_empty_captions_that_say_so(
    server: ChatServer, place: int, status: int
) -> None:
    batch = with_a_red_one(place)
    server.answer = no_red(status)
    found = made(server).write(batch, NUCLEUS, seed=5, candidates=2)
    for number, mine in enumerate(found):
        if number != place:
            assert mine == [Written(written(batch, number, n, 5)) for n in range(2)]
            continue
        assert [(one.text, one.unfinished) for one in mine] == [("", Unfinished.REFUSED)] * 2
        assert f"{status} " in mine[0].said
        assert "content policy violation" in mine[0].said
        assert batch.sha256[place] in mine[0].said
    assert len(server.chats) == 5 * 2 + 1, "the server was asked once with a plain picture"


def test_the_plain_picture_is_asked_of_as_the_refused_one_was(server: ChatServer) -> None:
    server.answer = no_red(400)
    batch = batch_of(Image.new("RGB", (40, 400), (250, 0, 0)))
    made(server).write(batch, NUCLEUS, seed=5, candidates=1)
    refused, instead = server.chats
    assert instead.picture.size == (400, 300)
    assert instead.picture.getcolors() == [(400 * 300, (128, 128, 128))]
    bodies = [json.loads(json.dumps(asked.body)) for asked in (refused, instead)]
    for body in bodies:
        body["messages"][0]["content"][0].pop("image_url")
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("at_most_px", [0, 400 * 300 - 1], ids=["no pictures", "none so large"])
def test_a_server_that_refuses_any_such_picture_is_the_wrong_one(server: ChatServer, at_most_px: int) -> None:
    def small(asked: Asked) -> Reply:
        width, height = asked.picture.size
        return seen(asked) if width * height <= at_most_px else failure(400, "no multimodal model")

    server.answer = small
    model = made(server)
    with pytest.raises(CapfiltError, match="no multimodal model") as refused:
        model.write(batch_of(*[Image.new("RGB", (400, 400), "red")] * 6), NUCLEUS, seed=5, candidates=1)
    assert "takes pictures" in refused.value.fix


@pytest.mark.parametrize(
    ("status", "kind"), [(401, CapfiltError), (404, CapfiltError), (500, RunFailedError)]
)
def test_what_no_picture_is_refused_for_still_ends_the_run(
    server: ChatServer, status: int, kind: type[CapfiltError]
) -> None:
    server.answer = no_red(status)
    with pytest.raises(CapfiltError, match="content policy violation") as failed:
        made(server, QUICK.model_copy(update={"retries": 0})).write(
            with_a_red_one(2), NUCLEUS, seed=5, candidates=1
        )
    assert type(failed.value) is kind or (status < 500 and not isinstance(failed.value, RunFailedError))


def test_a_server_that_fails_while_a_refusal_is_looked_into_is_a_failed_run(server: ChatServer) -> None:
    server.next_replies = [failure(400, "no"), *[failure(500, "out of memory")] * 9]
    with pytest.raises(RunFailedError, match="out of memory"):
        made(server).write(plain(1), NUCLEUS, seed=5, candidates=1)


def test_what_is_measured_alone_is_no_empty_caption(server: ChatServer) -> None:
    server.answer = no_red(400)
    with pytest.raises(CapfiltError, match="content policy violation"):
        made(server).caption(with_a_red_one(3), NUCLEUS, seed=5, candidates=1)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (caption("A red square."), Written("A red square.")),
        (caption("A red square.", finish_reason=None), Written("A red square.")),
        (caption("A red squ", finish_reason="length"), Written("A red squ", Unfinished.LENGTH)),
        (caption("<think>It is", finish_reason="length"), Written("", Unfinished.LENGTH)),
        (caption("A re", finish_reason="content_filter"), Written("", Unfinished.CONTENT_FILTER)),
        (caption(None, finish_reason="content_filter"), Written("", Unfinished.CONTENT_FILTER)),
        (
            caption(None, message={"content": None, "refusal": "I cannot say."}),
            Written("", Unfinished.REFUSED),
        ),
    ],
)
def test_an_answer_says_how_it_ended(server: ChatServer, reply: Reply, expected: Written) -> None:
    server.next_replies = [reply]
    assert isinstance(made(server), TellingCaptioner)
    assert made(server).write(plain(1), NUCLEUS, seed=0, candidates=1) == [[expected]]


# -- what is sent


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def arrived(server: ChatServer, picture: Image.Image, settings: Server) -> Image.Image:
    made(server, settings).caption(batch_of(picture), GREEDY, seed=0, candidates=1)
    return server.chats[-1].picture


def test_the_picture_that_arrives_is_the_one_that_was_sent(server: ChatServer) -> None:
    picture = noise(50, 34)
    there = arrived(server, picture, QUICK)
    assert server.chats[-1].url.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(there), np.asarray(picture))


def test_a_jpeg_that_arrives_is_the_picture_up_to_jpegs_loss_of_quality_90(server: ChatServer) -> None:
    ramp = np.linspace(0, 255, 64)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], 128.0), axis=-1).astype(np.uint8)
    there = arrived(server, Image.fromarray(pixels), QUICK.model_copy(update={"image_format": "jpeg"}))
    assert server.chats[-1].url.startswith("data:image/jpeg;base64,")
    assert there.mode == "RGB"
    same = io.BytesIO()
    Image.fromarray(pixels).save(same, "jpeg", quality=90)
    assert there.quantization == Image.open(same).quantization
    assert JpegImagePlugin.get_sampling(there) == 0  # every pixel has a colour of its own
    assert np.abs(np.asarray(there).astype(int) - pixels).mean() < 2
    assert np.abs(np.asarray(there).astype(int) - pixels).max() < 16


def test_transparency_arrives_on_white(server: ChatServer) -> None:
    picture = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 20, 40))
    there = arrived(server, picture, QUICK)
    assert there.mode == "RGB"
    assert (there.getpixel((5, 5)), there.getpixel((35, 5))) == ((0, 0, 255), (255, 255, 255))


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        ((640, 200), (64, 32)),
        ((640, 640), (64, 64)),
        ((64, 40), (64, 40)),
        ((1, 1), (32, 32)),
        ((20, 30), (32, 48)),
        ((1, 5000), (32, 64)),
    ],
)
def test_no_side_is_longer_than_it_may_be_and_none_too_short_to_be_read(
    server: ChatServer, size: tuple[int, int], sent: tuple[int, int]
) -> None:
    settings = QUICK.model_copy(update={"image_px": 64})
    assert arrived(server, Image.new("RGB", size, "red"), settings).size == sent


def body_of(server: ChatServer, settings: Server = QUICK, **decoding: Any) -> dict[str, Any]:
    chosen = CONVENTIONS.decoding(Decoding(**decoding))
    made(server, settings).caption(plain(1), chosen, seed=0, candidates=1)
    body = dict(server.chats[-1].body)
    body.pop("messages")
    body.pop("seed", None)
    return body


def test_a_server_that_is_known_is_told_everything_that_a_caption_depends_on(server: ChatServer) -> None:
    common = {"model": "acme/seer-7b", "max_tokens": 64, "temperature": 1.0, "top_p": 0.9}
    assert body_of(server) == {**common, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    chosen = body_of(server, top_k=7, repetition_penalty=1.2, min_tokens=3, temperature=0.5, top_p=0.8)
    assert chosen == {
        "model": "acme/seer-7b",
        "max_tokens": 64,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.2,
        "min_tokens": 3,
    }


def test_llama_server_is_told_it_in_its_own_words(server: ChatServer) -> None:
    server.models = [LLAMA]
    found = body_of(server, repetition_penalty=1.2)
    assert (found["repeat_penalty"], found["top_k"], found["min_p"]) == (1.2, 0, 0.0)
    assert "repetition_penalty" not in found


@pytest.mark.parametrize("owner", ["openai", None, 3])
def test_any_other_server_gets_no_name_that_openai_does_not_have_unless_it_is_chosen(
    server: ChatServer, owner: Any
) -> None:
    server.models = [{"id": "m", "owned_by": owner}]
    assert body_of(server) == {"model": "m", "max_tokens": 64, "temperature": 1.0, "top_p": 0.9}
    assert body_of(server, top_k=4)["top_k"] == 4


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [("llamacpp", "min_tokens", 3), ("library", "top_k", 4), ("library", "repetition_penalty", 1.1)],
)
def test_a_choice_that_a_server_would_leave_unheard_is_refused(
    server: ChatServer, owner: str, name: str, value: float
) -> None:
    server.models = [{"id": "m", "owned_by": owner}]
    with pytest.raises(CapfiltError, match=rf"decoding\.{name} is {value}.*{owner}") as refused:
        body_of(server, **{name: value})
    assert f"--set decoding.{name}=" in refused.value.fix
    assert server.chats == []


def test_beam_search_is_refused(server: ChatServer) -> None:
    with pytest.raises(CapfiltError, match=r"decoding\.method is beam") as refused:
        body_of(server, method="beam")
    assert "nucleus" in refused.value.fix
    assert server.chats == []


def test_further_fields_are_sent_as_they_are(server: ChatServer) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.05}
    found = body_of(server, QUICK.model_copy(update={"extra": extra}))
    assert (found["chat_template_kwargs"], found["min_p"]) == ({"enable_thinking": False}, 0.05)


@pytest.mark.parametrize(("prompt", "sent"), [(None, PROMPT), ("", PROMPT), ("What colour?", "What colour?")])
def test_the_prompt_is_the_instruction_after_the_picture(
    server: ChatServer, prompt: str | None, sent: str
) -> None:
    decoding = CONVENTIONS.decoding(Decoding(prompt=prompt))
    made(server).caption(plain(1), decoding, seed=0, candidates=1)
    (asked,) = server.chats
    assert asked.prompt == sent
    assert [part["type"] for part in asked.body["messages"][0]["content"]] == ["image_url", "text"]


# -- several at a time


@pytest.mark.parametrize("concurrency", [1, 4])
def test_as_many_requests_as_are_allowed_are_on_their_way_at_once(
    server: ChatServer, concurrency: int
) -> None:
    # Nobody is answered before so many are there: with fewer on their way it would time out.
    together = threading.Barrier(concurrency)

    def in_company(asked: Asked) -> Reply:
        together.wait(timeout=10)
        time.sleep(0.01)
        return seen(asked)

    server.answer = in_company
    model, batch = made(server, QUICK.model_copy(update={"concurrency": concurrency})), plain(6)
    found = model.caption(batch, NUCLEUS, seed=1, candidates=2)
    assert found == [[written(batch, n, m, 1) for m in range(2)] for n in range(6)]
    assert server.most_at_once == concurrency


# -- what fails


@pytest.mark.parametrize(
    "broken",
    [
        failure(500, "out of memory"),
        failure(503, "Loading model"),
        failure(408, "too slow"),
        failure(429, "too many", Retry_After="0"),
        Reply(drop=True),
        Reply(body=b"<html>a proxy's page</html>"),
        Reply(body=b"[" * 100_000),
        Reply(body=b'{"error": {"message": "upstream is gone"}}'),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": "text"}]}'),
        Reply(body=b"null"),
        Reply(body=b"\xff\xfe{}"),
        Reply(body=b'{"choices": 1' + b"0" * 5000 + b"}"),
        Reply(body=b'{"cho', headers={"Content-Length": "100"}),
        Reply(status=200, body=b" " * (10 << 20)),
    ],
    ids=lambda reply: f"{reply.status} {reply.body[:20]!r}{' dropped' if reply.drop else ''}",
)
def test_what_may_pass_is_asked_again_and_leaves_no_trace_in_the_caption(
    server: ChatServer, broken: Reply
) -> None:
    batch = plain(1)
    server.next_replies = [broken, broken]
    found = made(server).caption(batch, NUCLEUS, seed=3, candidates=1)
    assert found == [[written(batch, 0, 0, 3)]]
    assert len(server.chats) == 3
    first, *others = [asked.body for asked in server.chats]
    assert all(body == first for body in others)


def test_the_wait_grows_and_a_retry_after_is_waited_for(server: ChatServer) -> None:
    model = made(server, QUICK.model_copy(update={"backoff_s": 0.08, "retries": 3}))
    server.next_replies = [failure(500, ""), failure(500, ""), failure(429, "", Retry_After="1")]
    model.caption(plain(1), NUCLEUS, seed=3, candidates=1)
    at = [asked.at for asked in server.chats]
    first, second, third = (after - before for before, after in pairwise(at))
    assert 0.04 <= first < 0.5
    assert 0.08 <= second < 0.5
    assert third >= 1.16


def test_after_the_last_try_the_run_has_failed_and_says_where_and_why(server: ChatServer) -> None:
    model, batch = made(server, QUICK.model_copy(update={"retries": 2})), plain(1)
    server.next_replies = [failure(500, "CUDA out of memory")] * 9
    with pytest.raises(RunFailedError, match=r"tried 3 times: 500 .*: CUDA out of memory") as failed:
        model.caption(batch, NUCLEUS, seed=3, candidates=1)
    assert server.url in failed.value.what
    assert batch.sha256[0] in failed.value.what
    assert "goes on where it stopped" in failed.value.fix
    assert len(server.chats) == 3


def test_a_server_that_asks_to_wait_for_an_hour_is_not_waited_for(server: ChatServer) -> None:
    server.next_replies = [failure(429, "no quota left", Retry_After="3600")]
    with pytest.raises(RunFailedError, match=r"failed: 429 .*no quota left"):
        made(server).caption(plain(1), NUCLEUS, seed=3, candidates=1)


def test_an_answer_of_10_mb_is_not_read_to_its_end(server: ChatServer) -> None:
    model = made(server, QUICK.model_copy(update={"retries": 0}))
    server.next_replies = [caption("word " * (2 << 20))]
    with pytest.raises(RunFailedError, match=f"longer than {ANSWER_BYTES >> 20} MiB"):
        model.caption(plain(1), NUCLEUS, seed=3, candidates=1)


@pytest.mark.parametrize(
    "reply", [Reply(wait_s=60), Reply(body=b"{" * 600, drip_s=0.1)], ids=["silent", "slow"]
)
def test_a_server_that_is_silent_or_too_slow_is_left(server: ChatServer, reply: Reply) -> None:
    model = made(server, QUICK.model_copy(update={"retries": 0, "timeout_s": 0.5}))
    server.answer = lambda _asked: reply
    began = time.monotonic()
    with pytest.raises(RunFailedError, match=r"timed out|longer than server\.timeout_s"):
        model.caption(plain(1), NUCLEUS, seed=3, candidates=1)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_the_server_refuses_is_refused_at_once_in_its_own_words(server: ChatServer, status: int) -> None:
    model = made(server)
    server.next_replies = [failure(status, "seer-7b is\x1b[2J no multimodal model")]
    with pytest.raises(CapfiltError, match=r"seer-7b is \[2J no multimodal model") as refused:
        model.caption(plain(1), NUCLEUS, seed=3, candidates=1)
    assert not isinstance(refused.value, RunFailedError)
    assert str(status) in refused.value.what
    mend = {401: "OPENAI_API_KEY", 404: "/chat/completions", 413: "server.image_px"}
    assert mend.get(status, "takes pictures") in refused.value.fix
    assert len(server.chats) == 1


@pytest.mark.parametrize(
    "body", [b'{"detail": "so it is"}', b'{"message": "so it is"}', b'{"error": "so it is"}', b"so it is"]
)
def test_the_servers_words_are_found_however_it_says_them(server: ChatServer, body: bytes) -> None:
    server.next_replies = [Reply(422, body)]
    with pytest.raises(CapfiltError, match=r"422 Unprocessable \w+: so it is \("):
        made(server).caption(plain(1), NUCLEUS, seed=3, candidates=1)


def test_a_redirect_is_not_followed_with_key_and_pictures(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with chat_server() as elsewhere:
        server.next_replies = [Reply(307, b"", {"Location": f"{elsewhere.url}/chat/completions"})]
        with pytest.raises(CapfiltError, match=f"307 .*to {elsewhere.url}"):
            made(server).caption(plain(1), NUCLEUS, seed=3, candidates=1)
        assert elsewhere.requests == []


def test_one_refusal_ends_all_others_that_wait_without_waiting_for_them(server: ChatServer) -> None:
    model = made(server, QUICK.model_copy(update={"backoff_s": 30.0, "concurrency": 4}))
    there = threading.Barrier(4)

    def one_refused(_asked: Asked) -> Reply:
        place = there.wait(timeout=10)
        return failure(400, "no") if place == 0 else failure(500, "later")

    server.answer = one_refused
    began = time.monotonic()
    with pytest.raises(CapfiltError, match="400"):
        model.caption(plain(4), NUCLEUS, seed=3, candidates=1)
    assert time.monotonic() - began < 20
    time.sleep(0.2)
    assert len(server.chats) == 4


def test_a_server_killed_in_the_middle_is_a_failed_run(server: ChatServer) -> None:
    model = made(server, QUICK.model_copy(update={"retries": 2, "concurrency": 2}))
    killer: list[threading.Thread] = []

    def dies_at_the_fifth(asked: Asked) -> Reply:
        if len(server.chats) == 5:
            killer.append(threading.Thread(target=server.kill))
            killer[0].start()
            killer[0].join()
        return seen(asked)

    server.answer = dies_at_the_fifth
    with pytest.raises(RunFailedError, match="tried 3 times"):
        model.caption(plain(20), NUCLEUS, seed=3, candidates=2)
    assert killer


# -- keys


def test_the_key_is_sent_and_stands_in_no_record(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEER_KEY", " sk-very-secret\n")
    settings = QUICK.model_copy(update={"api_key_env": "SEER_KEY"})
    card = describe(server.url, settings)
    captioner(Path("nowhere"), card, "cpu", "fp32").caption(plain(1), NUCLEUS, seed=0, candidates=1)
    assert {asked.headers["Authorization"] for asked in server.requests} == {"Bearer sk-very-secret"}
    assert "very-secret" not in card.model_dump_json()
    assert card.foreign.asked["api_key_env"] == "SEER_KEY"


def test_without_a_key_none_is_sent(server: ChatServer) -> None:
    made(server)
    assert all("Authorization" not in asked.headers for asked in server.requests)


def test_a_key_that_the_server_repeats_is_not_shown(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    model = made(server)
    for status in (401, 500):
        server.next_replies = [failure(status, "wrong key sk-very-secret")] * 9
        with pytest.raises(CapfiltError, match=r"wrong key \*\*\*") as refused:
            model.caption(plain(1), NUCLEUS, seed=0, candidates=1)
        assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-sécret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(CapfiltError, match="OPENAI_API_KEY holds characters") as refused:
        made(server)
    assert "cret" not in str(refused.value)


# -- the card


def test_the_card_says_which_model_is_served_and_how_it_is_asked(server: ChatServer) -> None:
    card = describe(f"{server.url}/", QUICK)
    options = card.foreign.options
    assert (card.kind, card.objectives, card.family) == ("captioner", ("lm",), "server")
    assert (card.foreign.asked["url"], options["model"]) == (server.url, "acme/seer-7b")
    assert options["told"] == {"root": "acme/seer-7b", "owned_by": "vllm"}
    assert type(card).model_validate_json(card.model_dump_json()) == card
    assert made(server).digest == card.digest
    assert backend("server").captioner is captioner


def test_the_same_model_behind_another_port_has_the_same_digest_and_another_model_has_not(
    server: ChatServer,
) -> None:
    def digest(**told: Any) -> str:
        with chat_server() as other:
            other.models = [{**VLLM, "created": time.time_ns(), **told}]
            return describe(other.url, QUICK).weights

    same = describe(server.url, QUICK).weights
    assert digest() == same
    assert digest(id="acme/other") != same
    assert digest(root="/somewhere/else") != same
    assert digest(owned_by="someone") == same
    assert digest(meta={"size": 5}) != digest(meta={"size": 6})


def test_options_that_say_how_a_server_is_asked_are_those_that_no_request_shows(server: ChatServer) -> None:
    others = Server(
        api_key_env="OTHER", concurrency=2, timeout_s=9.0, retries=1, backoff_s=0.01, image_format="png"
    )
    bodies = []
    for settings in (QUICK, others):
        made(server, settings).caption(plain(1), NUCLEUS, seed=0, candidates=1)
        bodies.append(server.chats[-1].body)
    assert bodies[0] == bodies[1]
    changed = {name for name in Server.model_fields if getattr(QUICK, name) != getattr(others, name)}
    assert changed == ASKING - {"url"}


def test_a_server_that_serves_another_model_by_now_is_refused(server: ChatServer) -> None:
    card = describe(server.url, QUICK)
    server.models = [{**VLLM, "root": "acme/seer-7b-awq"}]
    with pytest.raises(CapfiltError, match=r"another model.*acme/seer-7b-awq.* instead of .*acme/seer-7b"):
        captioner(Path("nowhere"), card, "cpu", "fp32")


def card_or_error(server: ChatServer, **settings: Any) -> Card:
    return describe(server.url, QUICK.model_copy(update=settings))


def test_of_several_models_one_is_named(server: ChatServer) -> None:
    server.models = [{"id": name} for name in ("b", "a", "c", "d\x1b[2J", "\ud800")]
    with pytest.raises(CapfiltError, match="has several models: a, b, c") as refused:
        card_or_error(server)
    assert "--set server.model=a" in refused.value.fix
    assert card_or_error(server, model="c").foreign.options["model"] == "c"
    with pytest.raises(CapfiltError, match="has no model d; it has a, b, c"):
        card_or_error(server, model="d")


def test_a_server_without_a_list_serves_what_is_named(server: ChatServer) -> None:
    server.models = failure(404, "Not Found")
    assert card_or_error(server, model="seer").foreign.options["model"] == "seer"
    with pytest.raises(CapfiltError, match="404") as refused:
        card_or_error(server)
    assert "/v1" in refused.value.fix


def test_a_server_without_a_model_is_refused(server: ChatServer) -> None:
    for nothing in ([], None, [{"id": 3}]):
        server.models = nothing
        with pytest.raises(CapfiltError, match="serves no model"):
            card_or_error(server)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"data": [3]}', b'{"data": [{}]}', b'{"models": []}'])
def test_what_is_no_list_of_models_is_the_users_error(server: ChatServer, answer: bytes) -> None:
    server.models = Reply(body=answer)
    with pytest.raises(CapfiltError, match="/models failed: its answer is not") as refused:
        card_or_error(server)
    assert not isinstance(refused.value, RunFailedError)


def test_where_nobody_answers_the_user_is_told_at_once() -> None:
    with chat_server() as gone:
        url = gone.url
    with pytest.raises(CapfiltError, match=f"{url}/models failed: .*refused") as refused:
        describe(url, Server())
    assert not isinstance(refused.value, RunFailedError)
    assert "start the server" in refused.value.fix


def test_a_server_without_tls_asked_by_tls_is_named(server: ChatServer) -> None:
    with pytest.raises(CapfiltError, match=r"/models failed: .*SSL"):
        describe(server.url.replace("http:", "https:"), QUICK)


@pytest.mark.parametrize("name", ["seed", "messages", "max_tokens", "model"])
def test_further_fields_are_none_that_capfilt_sends(name: str) -> None:
    with pytest.raises(CapfiltError, match=f"extra holds {name}"):
        changed(Server(), {"extra": {name: 1}})


def test_a_proxy_is_not_asked_for_this_machine(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        describe(server.url, QUICK)
        describe(server.url.replace("127.0.0.1", "localhost"), QUICK)
        assert proxy.requests == []
        # The same for another host goes there, unless NO_PROXY has it.
        describe("http://captions.example/v1", QUICK)
        assert [asked.path for asked in proxy.requests] == ["http://captions.example/v1/models"]
        monkeypatch.setenv("no_proxy", "captions.example")
        with pytest.raises(CapfiltError):
            describe("http://captions.example/v1", QUICK)
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("source", ["http://a:1/v1", "https://a/v1", "http:/a:1/v1", " HTTPS://a"])
def test_an_address_is_told_from_other_sources(source: str) -> None:
    assert is_address(source)


@pytest.mark.parametrize("source", ["acme/seer", "runs/http", "httpd/model", "ftp://a", "/http:/a", ""])
def test_a_path_or_a_hub_id_is_no_address(source: str) -> None:
    assert not is_address(source)


def test_requests_are_what_json_and_the_card_say(server: ChatServer) -> None:
    """The body survives a round trip through strict JSON: no NaN, nothing that only Python writes."""
    made(server).caption(plain(1), NUCLEUS, seed=2**62, candidates=1)
    (asked,) = server.chats
    assert json.loads(json.dumps(asked.body, allow_nan=False)) == asked.body
    assert asked.headers["Content-Type"] == "application/json"
