"""Token accounts: every token is pending, committed or dropped, in whatever order things happen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.writing.token_ledger import Accounts, TokenLedger


def test_tokens_are_pending_until_they_are_committed_or_dropped() -> None:
    ledger = TokenLedger()
    ledger.receive(10)
    ledger.receive(5)
    assert ledger.accounts() == Accounts(pending=15, committed=0, dropped=0)
    ledger.settle(received=10, committed=8, worker_id=1)
    assert ledger.accounts() == Accounts(pending=5, committed=8, dropped=2)
    ledger.settle(received=5, committed=0, worker_id=1)
    assert ledger.accounts() == Accounts(pending=0, committed=8, dropped=7)
    assert not ledger.late_tokens()


def test_a_commit_that_is_answered_after_the_lease_was_lost_is_late() -> None:
    ledger = TokenLedger()
    ledger.receive(10)
    ledger.lease_lost(1)
    ledger.settle(received=10, committed=8, worker_id=1)
    assert ledger.accounts() == Accounts(pending=0, committed=0, dropped=10), "the next life has none of it"
    late = ledger.late_tokens()
    assert late == {1: 8}
    ledger.receive(3)
    ledger.settle(received=3, committed=3, worker_id=1)
    ledger.late_settled(late)
    assert ledger.late_tokens() == {1: 3}, "what came meanwhile is not forgotten"
    ledger.late_settled(ledger.late_tokens())
    assert not ledger.late_tokens()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans(), st.booleans()), max_size=30))
def test_the_accounts_add_up_to_what_came(claims: list[tuple[int, int, bool, bool]]) -> None:
    ledger, total, worker = TokenLedger(), 0, 1
    for kept, lost, is_settled, loses_lease in claims:
        ledger.receive(kept + lost)
        total += kept + lost
        claimant = worker
        if loses_lease:
            ledger.lease_lost(worker)
            worker += 1
        if is_settled:
            ledger.settle(received=kept + lost, committed=kept, worker_id=claimant)
        accounts = ledger.accounts()
        assert accounts.pending + accounts.committed + accounts.dropped == total
        assert min(accounts.pending, accounts.committed, accounts.dropped) >= 0
    committed = sum(kept for kept, _, is_settled, _ in claims if is_settled)
    assert ledger.accounts().committed + ledger.late_tokens().total() == committed
