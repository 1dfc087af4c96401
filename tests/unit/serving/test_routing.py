"""Which replica gets a request, by prefix and load."""

from collections import Counter

from limrank.records import Query
from limrank.serving.routing import Routing, prefix_key


def routing(*replicas, **options):
    found = Routing(**options)
    found.update(replicas)
    return found


def send(routing, prefix, pairs=10):
    """Route a request; the replica that has it."""
    replica = routing.order(prefix, pairs)[0]
    routing.sent(replica, prefix, pairs)
    return replica


def ask(routing, prefix, pairs=10):
    """Route a request that is answered at once."""
    replica = send(routing, prefix, pairs)
    routing.finished(replica, pairs)
    return replica


def test_a_query_seen_before_goes_where_it_was():
    three = routing("a", "b", "c")
    homes = {f"q{number}": ask(three, f"q{number}") for number in range(300)}
    assert min(Counter(homes.values()).values()) > 60
    assert {prefix: ask(three, prefix) for prefix in homes} == homes


def test_new_queries_go_to_the_replica_with_the_least_to_do():
    three = routing("a", "b", "c")
    assert {send(three, f"q{number}") for number in range(3)} == {"a", "b", "c"}
    three.finished("b", 10)
    assert send(three, "new") == "b"


def test_a_hot_query_does_not_queue_on_one_replica():
    three = routing("a", "b", "c")
    held = Counter(send(three, "hot") for _ in range(30))
    assert held == {"a": 10, "b": 10, "c": 10}


def test_a_replica_may_have_a_quarter_more_than_the_mean():
    two = routing("a", "b")
    home = ask(two, "known")
    other = "b" if home == "a" else "a"
    two.sent(home, "", 110)
    two.sent(other, "", 90)
    assert two.order("known", 10) == [home, other]  # 120 of at most 1.25 · 210 / 2
    two.sent(home, "", 40)
    assert two.order("known", 10) == [other, home]  # 160 of at most 1.25 · 250 / 2


def test_a_replica_more_or_less_moves_few_queries():
    three = routing("a", "b", "c")
    homes = {f"q{number}": ask(three, f"q{number}") for number in range(300)}
    three.update(["a", "b", "c", "d"])
    assert {prefix: ask(three, prefix) for prefix in homes} == homes
    assert ask(three, "new") in "abcd"
    three.update(["a", "b"])
    moved = {prefix: ask(three, prefix) for prefix in homes}
    assert all(moved[prefix] == home for prefix, home in homes.items() if home != "c")
    assert set(moved.values()) == {"a", "b"}


def test_two_routers_that_have_seen_nothing_agree():
    one, other = routing("a", "b", "c"), routing("c", "b", "a")
    assert all(one.order(f"q{number}", 1) == other.order(f"q{number}", 1) for number in range(50))


def test_a_replica_that_does_not_answer_comes_last():
    two = routing("a", "b")
    home = ask(two, "q")
    two.suspect(home)
    assert two.order("q", 10)[-1] == home
    two.update(["a", "b"])
    assert two.order("q", 10)[0] == home


def test_what_is_remembered_is_bounded():
    two = routing("a", "b", remembered=2)
    for prefix in ("q1", "q2", "q1", "q3"):  # q1 was asked again, so q2 is forgotten
        ask(two, prefix)
    assert list(two._seen) == ["q1", "q3"]
    assert two._loads == {}


def test_without_replicas():
    assert Routing().up is None
    none = routing()
    assert (none.up, none.order("q", 1)) == (0, [])
    none.finished("gone", 5)
    assert none.load("gone") == 0


def test_a_key_is_the_querys_and_does_not_show_it():
    query = Query("1", "merge feeds", "only Python")
    assert prefix_key(query) == prefix_key(Query("2", "merge feeds", "only Python"))
    others = [Query("1", "merge feeds"), Query("1", "merge feedsonly Python"), Query("1", "merge", "feeds only Python")]
    assert len({prefix_key(each) for each in [query, *others]}) == 4
    assert len(prefix_key(Query("1", "\ud800"))) == 32
