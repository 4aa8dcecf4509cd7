"""Versions, limits, second operators, tokens, flags: one event, its effects, and nothing else."""

from desk_rig import REPORT, Desk, key_of
from msgspec.structs import replace

from gristmill.broker.registry.core.records import (
    AnswerRow,
    AnswerToken,
    Ask,
    DecisionSaid,
    Policy,
    PrincipalSaid,
    RefusalNoted,
    Refuse,
    TokenAsked,
)
from gristmill.broker.registry.core.step import NOTE_REST_MS, changes_after, wait_ms
from gristmill.wire.enrolment import Check


def refused(answer: object, code: str) -> Refuse:
    assert isinstance(answer, Refuse), answer
    assert answer.code == code, answer
    return answer


def test_the_same_decision_again_changes_nothing(desk: Desk) -> None:
    desk.into("pending")
    first = desk.decide("approve", seen=1)
    records, row = len(desk.log), desk.row()
    again = desk.decide("approve", seen=1)
    assert isinstance(first, AnswerRow)
    assert isinstance(again, AnswerRow)
    assert (again.is_repeat, first.is_repeat) == (True, False)
    assert (len(desk.log), desk.row()) == (records, row)


def test_of_two_operators_one_wins_and_the_other_is_told(desk: Desk) -> None:
    desk.into("pending")
    assert isinstance(desk.decide("approve", seen=1, by="ann"), AnswerRow)
    told = refused(desk.decide("reject", seen=1, by="bob"), "STALE_DECISION")
    assert "approved in version 2, by ann" in told.message
    assert desk.row().principal.state == "approved"
    # The loser did not even agree by chance: the same act by another is another decision.
    refused(desk.decide("approve", seen=1, by="bob"), "STALE_DECISION")
    # What never was is no better than what no longer is.
    refused(desk.decide("limit", seen=99), "STALE_DECISION")


def test_a_second_operator(desk: Desk) -> None:
    desk = Desk(Policy(approvals=2))
    desk.into("pending")
    first = desk.decide("approve", by="ann")
    assert isinstance(first, AnswerRow)
    assert (first.row.principal.state, first.row.approvals) == ("pending", ("ann",))
    refused(desk.decide("approve", by="ann", reason="again"), "SECOND_OPERATOR")
    desk.restart()
    second = desk.decide("approve", by="bob")
    assert isinstance(second, AnswerRow)
    assert (second.row.principal.state, second.row.approvals) == ("approved", ())
    assert [record.by for record in desk.log if record.act == "approve"] == ["ann", "bob"]


def test_other_limits_need_all_operators_again(desk: Desk) -> None:
    desk = Desk(Policy(approvals=2))
    desk.into("pending")
    desk.decide("approve", by="ann")
    desk.decide("approve", by="bob", slots_max=64)
    assert (desk.row().principal.state, desk.row().approvals) == ("pending", ("bob",))
    desk.decide("approve", by="ann", slots_max=64)
    assert desk.row().principal.state == "approved"
    desk = Desk(Policy(approvals=2))
    desk.into("pending")
    desk.decide("approve", by="ann")
    desk.decide("limit", by="bob", slots_max=4)  # what ann said yes to was something else
    assert (desk.row().principal.state, desk.row().approvals) == ("pending", ())


def test_limits_are_kept_and_told(desk: Desk) -> None:
    desk.into("pending")
    desk.decide("limit", slots_max=3)
    assert (desk.row().principal.slots_max, desk.row().principal.node_class) == (3, "gpu")
    desk.decide("approve", node_class="standard")
    assert (desk.row().principal.slots_max, desk.row().principal.node_class) == (3, "standard")
    assert desk.log[-1].why == "slots 3, class standard; because"
    refused(desk.decide("limit", slots_max=0), "INVALID_SPEC")


def test_a_judgement_needs_a_reason(desk: Desk) -> None:
    desk.into("pending")
    refused(desk.decide("reject", reason=""), "INVALID_SPEC")
    refused(desk.decide("ban", reason=""), "INVALID_SPEC")
    refused(desk.decide("approve", by=""), "INVALID_SPEC")
    assert isinstance(desk.decide("approve", reason=""), AnswerRow)
    refused(desk.decide("canary_wrong", reason=""), "INVALID_SPEC")


def test_a_vanished_node_is_not_approved(desk: Desk) -> None:
    desk.into("pending")
    token = next(iter(desk.tokens))
    desk.now_ms += desk.state.policy.vanished_ms + 1
    told = refused(desk.decide("approve"), "NODE_VANISHED")
    assert "last seen 30.0 s ago, at 10.0.0.9" in told.message
    records = len(desk.log)
    assert isinstance(desk.enrol(token, key_of(1), source="10.0.0.10"), AnswerRow)  # it asks again
    assert len(desk.log) == records
    assert isinstance(desk.decide("approve"), AnswerRow)


def test_a_wrong_canary_tells_the_difference(desk: Desk) -> None:
    desk.into("approved")
    desk.decide("canary_wrong", by="broker:b1", reason="expected 42, got 41")
    assert desk.row().principal.reason == "expected 42, got 41"
    desk.decide("release")
    assert desk.row().principal.state == "approved"  # it must pass again


# ------------------------------------------------------------ tokens of nodes


def test_a_token_is_good_once_for_one_name_and_a_while(desk: Desk) -> None:
    token = desk.token()
    refused(desk.enrol(token, key_of(1), "other"), "FORBIDDEN")
    refused(desk.enrol("f" * 64, key_of(1)), "UNAUTHORISED")
    assert isinstance(desk.enrol(token, key_of(1), is_proven=False), Ask)
    assert desk.rows == {}  # nothing before the signature
    assert isinstance(desk.enrol(token, key_of(1)), AnswerRow)
    assert desk.tokens[token].state == "used"
    late = desk.token("late", ttl_ms=1_000)
    desk.now_ms += 1_000
    refused(desk.enrol(late, key_of(2), "late"), "TOKEN_EXPIRED")
    desk.tick()
    assert desk.tokens[late].state == "expired"
    refused(desk.enrol(late, key_of(2), "late"), "TOKEN_EXPIRED")


def test_a_second_use_flags_the_node(desk: Desk) -> None:
    token = desk.token()
    desk.enrol(token, key_of(1))
    desk.restart()
    for number in range(2, 12):
        for is_proven in (False, True):
            refused(desk.enrol(token, key_of(number), is_proven=is_proven), "TOKEN_USED")
    row = desk.row()
    assert (row.principal.public, row.principal.state, row.flags) == (key_of(1), "pending", 20)
    assert key_of(11)[:16] in row.flagged
    assert [record.act for record in desk.log].count("second-use") == 5  # of 1, 2, 4, 8, 16
    desk.restart()
    assert desk.row().flags == 20


def test_another_token_for_a_name_revokes_the_first(desk: Desk) -> None:
    first, second = desk.token(), desk.token(by="bob")
    assert (desk.tokens[first].state, desk.tokens[second].state) == ("revoked", "open")
    assert (desk.log[-2].act, desk.log[-2].by) == ("token-revoked", "bob")
    refused(desk.enrol(first, key_of(1)), "TOKEN_REVOKED")
    assert isinstance(desk.enrol(second, key_of(1)), AnswerRow)


def test_what_is_asked_of_a_token_is_checked(desk: Desk) -> None:
    asked = TokenAsked("", "a_b", "local", "", 1, False, "0" * 64)
    told = refused(desk.say(asked)[-1], "INVALID_SPEC")
    assert all(name in told.message for name in ("name is", "ttl is", "by is"))
    assert desk.log == []
    desk = Desk(Policy(tokens_max=1))
    desk.token("a")
    desk.token("a")  # in the place of the first
    refused(desk.say(replace(asked, by="ann", name="b", ttl_ms=0))[-1], "QUOTA")
    unknown = replace(asked, by="ann", name="b", ttl_ms=0, is_rotation=True)
    refused(desk.say(unknown)[-1], "UNKNOWN_NODE")


def test_a_name_keeps_its_key(desk: Desk) -> None:
    desk.into("active")
    other = desk.token()
    told = refused(desk.enrol(other, key_of(2)), "IDENTITY_CONFLICT")
    assert "node mill is active with another key" in told.message
    assert (desk.row().principal.public, desk.row().principal.state) == (key_of(1), "active")
    assert desk.row().flags == 1
    assert desk.log[-1].act == "conflict"
    # A key has one name, too.
    refused(desk.enrol(desk.token("second"), key_of(1), "second"), "IDENTITY_CONFLICT")
    # When the node is gone, its name is free.
    desk.decide("revoke")
    assert isinstance(desk.enrol(other, key_of(2)), AnswerRow)
    assert desk.row().principal.public == key_of(2)


def test_a_banned_key_never_comes_back_but_its_name_may(desk: Desk) -> None:
    desk.into("banned")
    told = refused(desk.enrol(desk.token(), key_of(1)), "NODE_REFUSED")
    assert told.message == "the key of mill is banned: because"
    assert isinstance(desk.enrol(desk.token(), key_of(2)), AnswerRow)


def test_a_new_key_must_be_signed_for_by_the_old_one(desk: Desk) -> None:
    desk.into("active")
    token = desk.token(is_rotation=True)
    refused(desk.enrol(token, key_of(2)), "FORBIDDEN")
    refused(desk.enrol(token, key_of(2), replaces=key_of(3)), "FORBIDDEN")
    refused(desk.enrol(token, key_of(1), replaces=key_of(1)), "FORBIDDEN")
    assert isinstance(desk.enrol(token, key_of(2), replaces=key_of(1), is_proven=False), Ask)
    answer = desk.enrol(token, key_of(2), replaces=key_of(1))
    assert isinstance(answer, AnswerRow)
    desk.restart()
    assert desk.state.nodes == {"mill": key_of(2)}
    assert desk.state.rows[key_of(1)].principal.state == "revoked"
    late = desk.token(is_rotation=True)
    desk.decide("revoke")
    refused(desk.enrol(late, key_of(4), replaces=key_of(2)), "TOKEN_REVOKED")


def test_a_node_that_fails_its_own_test_does_not_enter(desk: Desk) -> None:
    report = replace(REPORT, checks=[Check("clock", False, "40 s ahead", "timedatectl set-ntp 1")])
    told = refused(desk.enrol(desk.token(), key_of(1), report=report), "SELF_TEST_FAILED")
    assert (told.message, told.hint) == ("clock: 40 s ahead", "timedatectl set-ntp 1")
    assert desk.rows == {}


def test_the_crowd_at_the_door_is_bounded() -> None:
    desk = Desk(Policy(pending_max=2, principals_max=3))
    for number, name in enumerate(("a", "b")):
        desk.enrol(desk.token(name), key_of(number), name)
    refused(desk.enrol(desk.token("c"), key_of(7), "c"), "QUOTA")
    desk.decide("approve", "a")
    assert isinstance(desk.enrol(desk.token("c"), key_of(7), "c"), AnswerRow)
    desk.decide("approve", "b")
    refused(desk.enrol(desk.token("d"), key_of(8), "d"), "QUOTA")


def test_time_is_told_and_waited_for(desk: Desk) -> None:
    assert wait_ms(desk.state, desk.now_ms) is None
    desk.token(ttl_ms=5_000)
    assert wait_ms(desk.state, desk.now_ms) == 5_000
    assert desk.tick(4_999) == []
    assert len(desk.tick(1)) == 2
    assert wait_ms(desk.state, desk.now_ms) is None
    desk.into("pending")
    assert wait_ms(desk.state, desk.now_ms) == desk.state.policy.pending_ttl_ms
    desk.tick(desk.state.policy.pending_ttl_ms)
    assert (desk.row().principal.state, desk.log[-1].by) == ("expired", "registry")
    assert desk.tick(10**9) == []


# ------------------------------------------------------------ people, services, doors


def person(number: int = 9, **more: object) -> PrincipalSaid:
    said = PrincipalSaid("ann", key_of(number), "client", "ci", "lab", ("submit", "read"), 0)
    return replace(said, **more)


def test_a_persons_token_is_a_key(desk: Desk) -> None:
    answer = desk.say(person())[-1]
    assert isinstance(answer, AnswerRow)
    assert (answer.row.principal.scopes, answer.row.principal.state) == (
        ["submit", "read"],
        "active",
    )
    again = desk.say(person())[-1]
    assert isinstance(again, AnswerRow)
    assert again.is_repeat
    refused(desk.say(person(tenant="other"))[-1], "IDENTITY_CONFLICT")
    refused(desk.say(person(10))[-1], "IDENTITY_CONFLICT")
    bad = refused(
        desk.say(person(11, name="a b", tenant="", expires_ms=1, by=""))[-1], "INVALID_SPEC"
    )
    assert all(name in bad.message for name in ("name is", "tenant is", "expires is", "by is"))
    refused(desk.decide("ban", "ci", seen=1, is_token=True), "WRONG_STATE")
    refused(desk.decide("revoke", "ci", seen=1), "UNKNOWN_NODE")  # no node has this name
    revoked = desk.decide("revoke", "ci", seen=1, is_token=True)
    assert isinstance(revoked, AnswerRow)
    assert revoked.row.principal.state == "revoked"
    assert isinstance(desk.decide("revoke", "ci", seen=1, is_token=True), AnswerRow)
    refused(desk.decide("revoke", "ci", seen=2, is_token=True), "WRONG_STATE")
    assert isinstance(desk.say(person(12))[-1], AnswerRow)  # its name is free
    refused(desk.enrol(desk.token(), key_of(12)), "IDENTITY_CONFLICT")  # no node with this key
    assert [record.act for record in desk.log] == ["create", "revoke", "create", "token"]


def test_refusals_at_doors_are_recorded_once_a_minute(desk: Desk) -> None:
    note = RefusalNoted("b1", "FORBIDDEN", key_of(5), "eve", "node approve")
    assert len(desk.say(note)) == 1
    assert desk.say(note) == []
    assert len(desk.say(replace(note, code="UNAUTHORISED"))) == 1
    desk.now_ms += NOTE_REST_MS
    assert len(desk.say(note)) == 1
    assert (desk.log[-1].by, desk.log[-1].why) == ("broker:b1", "FORBIDDEN: node approve")
    for number in range(5_000):
        desk.say(replace(note, public=key_of(number)))
    assert len(desk.state.noted) <= 4_096
    assert len(desk.log) < 4_200


def test_followers_are_told_what_changed(desk: Desk) -> None:
    for number, name in enumerate(("a", "b", "c")):
        desk.enrol(desk.token(name), key_of(number), name)
    rows, is_all = changes_after(desk.state, 0, 2)
    assert ([row.principal.name for row in rows], is_all) == (["a", "b"], False)
    known = rows[-1].change
    desk.decide("approve", "a")
    rows, is_all = changes_after(desk.state, known, 2)
    assert ([row.principal.name for row in rows], is_all) == (["c", "a"], True)
    assert changes_after(desk.state, desk.state.number, 2) == ([], True)
    rows, _ = changes_after(desk.state, 10**6, 5)  # it followed another registry
    assert [row.principal.name for row in rows] == ["b", "c", "a"]


def test_a_decision_by_public_key(desk: Desk) -> None:
    desk.into("approved")
    said = DecisionSaid("broker:b1", "canary_right", key_of(1), 2)
    answer = desk.say(said)[-1]
    assert isinstance(answer, AnswerRow)
    assert answer.row.principal.state == "active"
    refused(desk.say(replace(said, name=key_of(3)))[-1], "UNKNOWN_NODE")


def test_an_answer_to_a_token_says_that_it_replaces_one(desk: Desk) -> None:
    desk.token()
    answer = desk.say(TokenAsked("ann", "mill", "local", "", 0, False, "e" * 64))[-1]
    assert isinstance(answer, AnswerToken)
    assert answer.revoked
