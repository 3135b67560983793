"""What a server keeps: for how long, how much, and what makes room."""

import dataclasses

import pytest

from spn_jax.demo.store import Store, new_key


@dataclasses.dataclass
class Thing:
    key: str
    size: int = 10
    busy: bool = False


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    """Room for three things of the usual size, or four smaller ones, ten seconds long."""
    return Store(10, 30, 4, clock)


def kept(store: Store, keys: str) -> str:
    """Which of these are kept, without using them."""
    store.sweep()
    return "".join(key for key in keys if key in store._kept)


def test_small_things_are_kept_up_to_a_number(store: Store) -> None:
    for key in "abcd":
        store.put(Thing(key, 0))
    store.get("a", Thing)
    store.put(Thing("e", 0))
    assert kept(store, "abcde") == "acde"


def test_a_look_takes_no_longer_where_many_were_sent(clock: Clock) -> None:
    """What is kept is counted and bounded: twenty thousand small uploads would make every look walk
    over all of them.
    """
    store = Store(1000, 2**30, 50, clock)
    for number in range(20_000):
        store.put(Thing(str(number), 1))
    assert len(store._kept) == 50 and store.get("19999", Thing) and not store.get("19949", Thing)


def test_what_was_not_used_for_long_goes(store: Store, clock: Clock) -> None:
    store.put(Thing("a"))
    store.put(Thing("b"))
    clock.now = 6
    assert store.get("a", Thing) is not None
    clock.now = 11
    assert kept(store, "ab") == "a"
    clock.now = 16
    assert store.get("a", Thing) is None


def test_the_longest_unused_makes_room(store: Store) -> None:
    for key in "abc":
        store.put(Thing(key))
    store.get("a", Thing)
    store.put(Thing("d", 20))
    assert kept(store, "abcd") == "ad"


def test_what_grows_while_it_is_kept_counts_as_it_is(store: Store) -> None:
    old, new = Thing("a"), Thing("b")
    store.put(old)
    store.put(new)
    new.size = 25
    assert kept(store, "ab") == "b"


def test_the_last_used_stays_whatever_its_size(store: Store) -> None:
    store.put(Thing("a"))
    store.put(Thing("b", 1000))
    assert kept(store, "ab") == "b"


def test_what_is_worked_on_stays(store: Store, clock: Clock) -> None:
    job = Thing("a", 25, busy=True)
    store.put(job)
    store.put(Thing("b"))
    clock.now = 11
    assert kept(store, "ab") == "a"
    job.busy = False
    assert kept(store, "ab") == ""


def test_keys_of_another_kind_find_nothing(store: Store) -> None:
    store.put(Thing("a"))
    assert store.get("a", Clock) is None  # type: ignore[type-var]
    assert store.get("b", Thing) is None
    store.drop("a")
    store.drop("a")
    assert store.get("a", Thing) is None


def test_keys_cannot_be_guessed() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100 and all(len(key) == 22 for key in keys)  # 128 bits in base 64
