"""What every engine promises, asked of all three: the fake, vLLM in this process, and
vLLM's own server behind the OpenAI engine."""

import asyncio
import json
import math
import time
import urllib.request
from contextlib import ExitStack

import pytest

from limrank.engines import meter
from limrank.errors import EngineError, RowError, UserError

TEXT = "The capital of France is"
CHAT = [{"role": "user", "content": "Name a colour."}]
STORY = [{"role": "user", "content": "Tell me a very long story."}]
# Its answer is so plain that both labels are among the 20 likeliest tokens, as an endpoint needs.
QUESTION = "Fire is cold. Answer: false\nIce is cold. Answer: true\nThe sky is green. Answer:"
LABELS = (" true", " false")
SCHEMA = {
    "type": "object",
    "properties": {"relevant": {"type": "boolean"}, "kind": {"enum": ["daily", "expert"]}},
    "required": ["relevant", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session", params=["fake", "vllm", "openai"])
def live(request, live_engine):
    if request.param == "vllm":
        yield request.getfixturevalue("vllm_engine")
    elif request.param == "openai":
        with live_engine("openai", base_url=request.getfixturevalue("vllm_server")) as opened:
            yield opened
    elif request.param == "fake":
        with live_engine("fake", latency_ms=20) as opened:
            yield opened


def generate(live, prompt, **options):
    return live.run(live.engine.generate(prompt, **options))


def label_logprobs(live, prompt, labels=LABELS):
    return live.run(live.engine.label_logprobs(prompt, labels))


async def streamed(engine, prompt, **options):
    return [piece async for piece in engine.stream(prompt, **options)]


def requests_running(live):
    """Requests in the model itself, from vLLM's own count."""
    if live.kind == "vllm":
        return live.engine._llm.output_processor.get_num_unfinished_requests()
    if live.kind == "openai":
        url = str(live.engine._client.base_url).replace("/v1/", "/metrics")
        with urllib.request.urlopen(url) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))
    return 0


def wait_until_idle(live, patience_s):
    deadline = time.monotonic() + patience_s
    while requests_running(live) and time.monotonic() < deadline:
        time.sleep(0.1)
    return requests_running(live)


@pytest.mark.parametrize("form", ["text", "chat", "ids"])
def test_answers_every_form_of_prompt(live, form):
    prompt = {"text": TEXT, "chat": CHAT, "ids": live.engine.tokenizer.encode(TEXT)}[form]
    answer = generate(live, prompt, max_tokens=8)
    assert answer.text.strip()
    assert answer.prompt_tokens > 0
    assert 1 <= answer.generated_tokens <= 8


def test_text_and_its_token_ids_are_the_same_prompt(live):
    ids = live.engine.tokenizer.encode(TEXT)
    as_text, as_ids = generate(live, TEXT, max_tokens=8), generate(live, ids, max_tokens=8)
    assert as_ids.text == as_text.text
    assert as_ids.prompt_tokens == as_text.prompt_tokens == len(ids)


def test_greedy_is_deterministic(live):
    first, second = (generate(live, TEXT, max_tokens=16) for _ in range(2))
    assert first.text == second.text


def test_a_seed_makes_sampling_repeatable(live):
    first, second = (generate(live, TEXT, max_tokens=12, temperature=1.0, seed=7) for _ in range(2))
    other = generate(live, TEXT, max_tokens=12, temperature=1.0, seed=8)
    assert first.text == second.text != other.text


def test_max_tokens_ends_with_length(live):
    answer = generate(live, "Count: one two three four", max_tokens=5)
    assert answer.finish_reason == "length"
    assert answer.generated_tokens == 5


def test_an_answer_tells_the_stop_that_ended_it_and_its_tokens(live):
    decode = live.engine.tokenizer.decode
    whole = generate(live, TEXT, max_tokens=16)
    stop = whole.text.split()[3]
    stopped = generate(live, TEXT, max_tokens=16, stop=[stop])
    cut = generate(live, TEXT, max_tokens=3, stop=["a stop that does not come"])
    assert (whole.stop, stopped.stop, cut.stop) == (None, stop, None)
    if live.kind == "vllm":  # an endpoint gives text alone
        for answer in (whole, cut):
            assert len(answer.ids) == answer.generated_tokens and decode(answer.ids) == answer.text
        assert decode(stopped.ids).startswith(stopped.text + stop)
        assert stopped.ids == whole.ids[: len(stopped.ids)]


def test_the_model_s_own_end_is_no_stop(live):
    ended = generate(live, CHAT, max_tokens=400, stop=["a stop that does not come"])
    if live.kind == "fake":
        pytest.skip("the fake engine has no end of its own: it is stopped by what it is asked to stop at")
    assert (ended.finish_reason, ended.stop) == ("stop", None)


def test_a_stop_string_ends_the_text_before_it(live):
    whole = generate(live, TEXT, max_tokens=16).text
    stop = whole.split()[3]
    answer = generate(live, TEXT, max_tokens=16, stop=[stop])
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_a_schema_is_kept(live):
    answer = generate(live, "Answer in JSON. A query about taxes:", max_tokens=60, schema=SCHEMA)
    value = json.loads(answer.text)
    assert set(value) == {"relevant", "kind"}
    assert isinstance(value["relevant"], bool)
    assert value["kind"] in ("daily", "expert")


@pytest.mark.parametrize("prompt", [TEXT, CHAT], ids=["text", "chat"])
def test_a_stream_is_the_same_text_in_pieces(live, prompt):
    pieces = live.run(streamed(live.engine, prompt, max_tokens=12))
    assert len(pieces) > 1
    assert "".join(pieces) == generate(live, prompt, max_tokens=12).text


def test_a_stream_honours_a_stop_string(live):
    whole = generate(live, TEXT, max_tokens=16).text
    stop = whole.split()[3]
    pieces = live.run(streamed(live.engine, TEXT, max_tokens=16, stop=[stop]))
    assert "".join(pieces) == whole[: whole.index(stop)]


def test_closing_a_stream_ends_its_request(live):
    async def first_piece():
        stream = live.engine.stream(STORY, max_tokens=1900)
        piece = await anext(stream)
        await stream.aclose()
        return piece, requests_running(live)

    piece, running = live.run(first_piece())
    assert piece
    if live.kind == "vllm":  # at once; a server sees the closed connection a moment later
        assert running == 0
    assert wait_until_idle(live, patience_s=5) == 0
    assert generate(live, TEXT, max_tokens=4).text


def test_a_cancelled_request_ends(live):
    async def cancelled():
        task = asyncio.create_task(live.engine.generate(STORY, max_tokens=1900))
        await asyncio.sleep(0.01 if live.kind == "fake" else 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    live.run(cancelled())
    assert wait_until_idle(live, patience_s=5) == 0
    assert generate(live, TEXT, max_tokens=4).text


def test_label_logprobs_are_log_probabilities(live):
    logprobs = label_logprobs(live, QUESTION)
    assert set(logprobs) == set(LABELS)
    assert all(math.isfinite(value) and value < 0 for value in logprobs.values())
    assert sum(map(math.exp, logprobs.values())) <= 1
    again = label_logprobs(live, live.engine.tokenizer.encode(QUESTION))
    assert again == pytest.approx(logprobs, abs=1e-4)


def test_a_label_of_several_tokens_is_refused(live):
    with pytest.raises(RowError if live.kind == "openai" else UserError, match="incontrovertibly"):
        label_logprobs(live, QUESTION, (" true", " incontrovertibly false"))


def prompt_of(live, tokens):
    return (live.engine.tokenizer.encode(" the") * tokens)[:tokens]


def test_a_prompt_too_long_fails_alone(live):
    with pytest.raises(RowError) as refused:
        generate(live, prompt_of(live, live.engine.limits.context + 1), max_tokens=16)
    assert not refused.value.retryable
    assert generate(live, TEXT, max_tokens=4).text


def test_an_answer_that_has_no_room_is_not_cut_in_silence(live):
    prompt = prompt_of(live, live.engine.limits.context - 10)
    if live.kind == "openai":  # vLLM's server writes what has room, and says so
        answer = generate(live, prompt, max_tokens=16)
        assert answer.finish_reason == "length"
        assert answer.generated_tokens == 10
    else:
        with pytest.raises(RowError, match="2038 prompt tokens and 16 more exceed the context of 2048"):
            generate(live, prompt, max_tokens=16)


def test_the_meter_counts_tokens(live):
    async def two():
        with meter() as usage:
            answer = await live.engine.generate(TEXT, max_tokens=5)
            await live.engine.label_logprobs(QUESTION, LABELS)
        return usage, answer

    usage, answer = live.run(two())
    question = len(live.engine.tokenizer.encode(QUESTION))
    assert usage.requests == 2
    assert usage.prompt == answer.prompt_tokens + question
    assert usage.generated == 5 + 1


def test_the_meter_counts_a_stream(live):
    async def metered():
        with meter() as usage:
            await streamed(live.engine, TEXT, max_tokens=5)
        return usage

    usage = live.run(metered())
    assert (usage.requests, usage.prompt, usage.generated) == (1, len(live.engine.tokenizer.encode(TEXT)), 5)


def test_many_requests_at_once_are_all_answered(live):
    async def all_at_once():
        with meter() as usage:
            prompts = [f"{number} plus one is" for number in range(64)]
            answers = await asyncio.gather(*(live.engine.generate(prompt, max_tokens=3) for prompt in prompts))
        return answers, usage

    answers, usage = live.run(all_at_once())
    assert len(answers) == usage.requests == 64
    assert all(answer.generated_tokens == 3 for answer in answers)


# ---- the fake alone -------------------------------------------------------------------


@pytest.fixture
def fake(live_engine):
    with ExitStack() as opened:
        yield lambda **settings: opened.enter_context(live_engine("fake", **settings))


def failing(live, prompts):
    failed = []
    for prompt in prompts:
        try:
            generate(live, prompt, max_tokens=2)
        except RowError:
            failed.append(prompt)
    return failed


def test_fake_fails_the_same_share_every_time(fake):
    prompts = [f"prompt {number}" for number in range(1000)]
    failed = failing(fake(fail_rate=0.1), prompts)
    # A tenth of 1000, within three standard deviations of a binomial (9.5).
    assert 71 <= len(failed) <= 129
    assert failing(fake(fail_rate=0.1), prompts) == failed


def test_fake_takes_its_latency(fake):
    live = fake(latency_ms=200)

    async def ten():
        await asyncio.gather(*(live.engine.generate(TEXT, max_tokens=2) for _ in range(10)))

    started = time.monotonic()
    live.run(ten())
    assert 0.2 <= time.monotonic() - started < 1.0


def test_fake_takes_its_latency_in_turns_beyond_what_fits(fake):
    live = fake(latency_ms=100, max_in_flight=2)

    async def six():
        await asyncio.gather(*(live.engine.generate(TEXT, max_tokens=2) for _ in range(6)))

    started = time.monotonic()
    live.run(six())
    assert 0.3 <= time.monotonic() - started < 1.0


def test_fake_is_killed_by_poison(fake):
    live = fake(poison="arsenic")
    assert generate(live, TEXT, max_tokens=2).text
    with pytest.raises(EngineError):
        generate(live, "old lace and arsenic", max_tokens=2)
