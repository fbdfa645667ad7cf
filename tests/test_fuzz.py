"""Whatever a stranger hands over is read, or refused in words: no crash, no hang, no hoard, no code of theirs run.

A failure names inputs by kind and seed; ``python tests/fuzzing.py KIND SEED`` tries one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
from fuzzing import Attempts, Verdict

FEW, MANY = 14, 340  # inputs of each kind: in every run of the tests, and in a long one
STRANGERS = [
    *("safetensors_bytes", "safetensors_header", "tensors", "pickle_bytes", "pickles", "config", "processor_config"),
    *("shard_bytes", "shard_rows", "prepared", "photo", "pair", "training_state", "resumed", "checkpoints"),
    *("log", "report", "label_names"),
]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    held = Attempts(tmp_path_factory.mktemp("fuzzing"))
    yield held
    held.close()


@pytest.fixture(scope="module")
def few(attempts: Attempts) -> Callable[[str], dict[int, Verdict]]:
    """How the first inputs of a kind end, each tried once."""
    return cache(lambda kind: {seed: attempts(kind, seed) for seed in range(FEW)})


def assert_none_is_wrong(kind: str, verdicts: dict[int, Verdict]) -> None:
    wrong = {seed: verdict.told for seed, verdict in verdicts.items() if verdict.ended == "wrong"}
    shown = "\n".join(f"{kind} {seed}: {told}" for seed, told in list(wrong.items())[:3])
    assert not wrong, f"{len(wrong)} of {len(verdicts)} inputs, seeds {list(wrong)}\n{shown}"


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_few_damaged_and_forged_inputs_are_read_or_refused(
    kind: str, few: Callable[[str], dict[int, Verdict]]
) -> None:
    assert_none_is_wrong(kind, few(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRANGERS)
def test_many_damaged_and_forged_inputs_are_read_or_refused(kind: str, attempts: Attempts) -> None:
    assert_none_is_wrong(kind, {seed: attempts(kind, seed) for seed in range(FEW, MANY)})


@pytest.mark.slow
@pytest.mark.real_data
def test_damaged_real_shards_are_read_or_refused(attempts: Attempts) -> None:
    assert_none_is_wrong("real_shard", {seed: attempts("real_shard", seed) for seed in range(150)})


@pytest.mark.parametrize("kind", STRANGERS)
def test_some_inputs_of_each_kind_are_read_and_some_refused(
    kind: str, few: Callable[[str], dict[int, Verdict]]
) -> None:
    always_read = {"report"}  # there is a page whatever is damaged
    ended = {verdict.ended for verdict in few(kind).values()}
    assert ended >= ({"result"} if kind in always_read else {"result", "refused"})


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("crash", "Segmentation fault"),
        ("hang", "Timeout"),
        ("leak", "not here"),
        ("litter", "log.jsonl.unfinished"),
    ],
)
def test_a_fault_is_seen_and_the_next_input_is_tried(fault: str, told: str, attempts: Attempts) -> None:
    verdict = attempts(fault, 0, seconds=0.5)
    assert verdict.ended == "wrong"
    assert told in verdict.told
    assert attempts("label_names", 0).ended in ("result", "refused")


@pytest.mark.parametrize("kind", ["safetensors_header", "pickles", "shard_rows", "pair", "training_state", "report"])
def test_an_input_is_made_again_from_its_kind_and_seed(
    kind: str, few: Callable[[str], dict[int, Verdict]], attempts: Attempts
) -> None:
    assert attempts(kind, 3).digest == few(kind)[3].digest
