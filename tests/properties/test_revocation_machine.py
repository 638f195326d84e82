"""A gateway's memory of who may come: inviting, joining, renewing, revoking, reinstating, restarts and restored backups
in any order, against a model that a reader can check by eye.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import relay.gateway.audit.log
import store.keys
import store.sealed
from relay.gateway.audit.log import AuditLog
from relay.gateway.backup import ENROLMENT_STEP, _forget
from relay.gateway.errors import EnrolmentRefused, NotFound, SetupRefused
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.serials import LIVE_MAX
from relay.gateway.state.sqlcipher import _SCHEMA
from store.database import Database
from store.keys import DatabaseKey
from tests.support.gateway_lab import PASSPHRASE, Clock, make_folder
from tests.support.stores import CachedStretch
from transport.errors import IdentityRefused
from transport.identity.join import Invitation
from transport.identity.revocation import RevocationList, read_list
from transport.identity.svid import make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.primitives import SigningKey

T = TypeVar("T")
NAMES = ("edge/a", "edge/b")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
KEYS = [SigningKey.generate() for _ in range(2)]
SVID_KEYS = [SigningKey.generate() for _ in range(3)]
CACHED = CachedStretch()


@lru_cache(maxsize=1)
def authority() -> Authority:
    with tempfile.TemporaryDirectory() as folder:
        return Authority.open(make_folder(Path(folder) / "gateway"), PASSPHRASE)


@dataclass(frozen=True)
class Reg:
    id: str
    device: int | str  # text for one without a key, which something else vouches for
    status: str = "active"


@dataclass(frozen=True)
class Invited:
    name: str
    open: bool = True
    device: int | None = None
    enrolment: int = 0


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """No key derivation and no waiting for the disk: neither is what is tried here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (store.keys, store.sealed):
            patch.setattr(module, "stretch", CACHED)
        patch.setattr(relay.gateway.audit.log.os, "fsync", lambda descriptor: None)
        yield


class Machine(RuleBasedStateMachine):
    """The real thing beside the model: `regs` by enrolment, `invited` by number, `issued` in order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="revocation-", dir=MEMORY))
        self.clock = Clock()
        self.key = DatabaseKey.generate()
        self.regs: dict[int, Reg] = {}
        self.invited: list[Invited] = []
        self.invitations: list[Invitation] = []
        self.issued: list[tuple[int, VerifiedPeer]] = []
        self.next = 1
        self.held = RevocationList()  # what an edge that sees every list has
        self.cut: list[int] = []
        self.saved: tuple[Path, dict[int, Reg], int, int] | None = None
        self.database: Database | None = None

    @initialize()
    def begin(self) -> None:
        self.authority = authority()
        self.audit: AuditLog | None = None
        self.open(self.folder / "state.db")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def open(self, path: Path) -> None:
        """A new process over a database."""
        async def start() -> None:
            if self.audit is not None:
                await self.audit.close()
            self.audit = AuditLog(self.folder / "audit.jsonl", clock=self.clock)
            self.enrolment = Enrolment(self.database, self.authority, self.audit, clock=self.clock)  # type: ignore[arg-type]
            await self.enrolment.load()
            self.revocation = Revocation(
                self.folder, self.database, self.authority, self.enrolment, self.audit, cut=self.cutting,  # type: ignore[arg-type]
                clock=self.clock,
            )
            await self.revocation.refresh()

        if self.database is not None:
            self.database.close()
        self.path = path
        self.database = Database.open(path, self.key, schema=_SCHEMA)
        self.run(start())

    async def cutting(self, ended: Any) -> None:
        for one in ended:
            with pytest.raises(IdentityRefused):  # on record before anything is cut
                self.enrolment.device_key(one.device_id)
            self.cut.append(one.enrolment)

    # --- what the model says -----------------------------------------------------------------------------------------

    def active(self, **wanted: Any) -> list[int]:
        return [
            number for number, one in self.regs.items()
            if one.status == "active" and all(getattr(one, field) == value for field, value in wanted.items())
        ]

    def end(self, number: int, status: str) -> None:
        self.regs[number] = replace(self.regs[number], status=status)

    def void(self, name: str) -> None:
        self.invited = [replace(one, open=False) if one.name == name else one for one in self.invited]

    def attested(self, name: str) -> list[int]:
        return [number for number in self.active(id=name) if isinstance(self.regs[number].device, str)]

    def add(self, name: str, device: int | str) -> int:
        number, self.next = self.next, self.next + 1
        self.regs[number] = Reg(name, device)
        return number

    # --- rules -------------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def invite(self, name: str) -> None:
        if self.attested(name):
            with pytest.raises(SetupRefused):
                self.run(self.enrolment.invite(name))
            return
        self.invitations.append(self.run(self.enrolment.invite(name)))
        self.invited.append(Invited(name))

    @rule(name=st.sampled_from(NAMES), device=st.sampled_from([0, 1]))
    def invite_and_join(self, name: str, device: int) -> None:
        before = len(self.invited)
        self.invite(name)
        if len(self.invited) > before:
            self.join(len(self.invited) - 1, device)

    @rule(name=st.sampled_from(NAMES))
    def attest(self, name: str) -> None:
        work = self.enrolment.attested(self.enrolment.identity(name), "spire")
        held, known = self.active(id=name), [number for number, one in self.regs.items() if one.id == name]
        barred = bool(known) and not held and self.regs[max(known)].status == "revoked"
        if barred or held != self.attested(name):
            with pytest.raises(EnrolmentRefused):
                self.run(work)
            return
        number = held[0] if held else self.add(name, f"no key of {name}")
        made = self.run(work)
        assert made.enrolment == number
        self.took(number, self.run(self.enrolment.issue_attested(made, SVID_KEYS[0].public)))

    @precondition(lambda self: self.invited)
    @rule(which=st.integers(0, 99), device=st.sampled_from([0, 1]))
    def join(self, which: int, device: int) -> None:
        which %= len(self.invited)
        one, invitation = self.invited[which], self.invitations[which]
        fits = one.open and one.device in (None, device) and (
            not self.attested(one.name) if one.device is None
            else self.regs.get(one.enrolment, Reg("", 0, "gone")).status == "active"
        )
        work = self.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(SVID_KEYS[0]), KEYS[device].public.spki, roles=("edge",)
        )
        if not fits:
            with pytest.raises(EnrolmentRefused):
                self.run(work)
            return
        number = one.enrolment
        if one.device is None:
            for earlier in {*self.active(id=one.name), *self.active(device=device)}:
                self.end(earlier, "replaced")
            number = self.add(one.name, device)
            self.invited[which] = replace(one, device=device, enrolment=number)
        self.took(number, self.run(work))

    @rule(device=st.sampled_from([0, 1]))
    def renew(self, device: int) -> None:
        work = self.enrolment.renew(
            self.device_id(device), make_csr(SVID_KEYS[1]), roles=("edge",)
        )
        found = self.active(device=device)
        if not found:
            with pytest.raises(EnrolmentRefused):
                self.run(work)
        else:
            self.took(found[0], self.run(work))

    @rule(name=st.sampled_from(NAMES))
    def revoke_by_name(self, name: str) -> None:
        known = any(one.id == name for one in self.regs.values())
        if not known and not any(one.name == name and one.open for one in self.invited):
            with pytest.raises(NotFound):
                self.run(self.revocation.revoke(name, "lost"))
            return
        ending = self.active(id=name)
        self.revoked(name, ending)
        self.void(name)

    @rule(number=st.integers(1, 12))
    def revoke_by_number(self, number: int) -> None:
        number = number if number in self.regs else next(reversed(self.regs), number)
        if number not in self.regs:
            with pytest.raises(NotFound):
                self.run(self.revocation.revoke(str(number), "lost"))
            return
        held = self.regs[number].status == "active"
        self.revoked(str(number), [number] if self.regs[number].status != "revoked" else [])
        if held:
            self.void(self.regs[number].id)

    def revoked(self, who: str, ending: list[int]) -> None:
        self.cut.clear()
        assert list(self.run(self.revocation.revoke(who, "lost")).enrolments) == ending
        assert self.cut == ending, "each is cut once, and nobody else"
        for number in ending:
            self.end(number, "revoked")

    @rule(name=st.sampled_from(NAMES))
    def reinstate(self, name: str) -> None:
        revoked = [number for number, one in self.regs.items() if one.id == name and one.status == "revoked"]
        if not revoked:
            with pytest.raises(NotFound):
                self.run(self.revocation.reinstate(name))
            return
        device = self.regs[revoked[-1]].device
        if self.active(id=name) or self.active(device=device):
            with pytest.raises(SetupRefused):
                self.run(self.revocation.reinstate(name))
            return
        made: Registration = self.run(self.revocation.reinstate(name))
        assert made.enrolment == self.add(name, device), "never the number it had"

    @rule()
    def restart(self) -> None:
        self.open(self.path)

    @rule()
    def back_up(self) -> None:
        path = self.folder / f"copy-{len(self.issued)}-{self.next}.db"
        path.unlink(missing_ok=True)
        assert self.database is not None
        self.run(self.database.copy(path))
        self.saved = path, dict(self.regs), self.next, len(self.issued)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def lose_everything_and_restore(self) -> None:
        assert self.saved is not None
        path, regs, following, issued = self.saved
        self.run(self.revocation.refresh())  # the list as hops have it
        latest, ended = self.revocation.list.data, {n for n, one in self.regs.items() if one.status != "active"}
        again = self.folder / "restored.db"
        if self.database is not None:
            self.database.close()
            self.database = None
        for name in ("", "-wal", "-shm"):
            Path(f"{again}{name}").unlink(missing_ok=True)
        shutil.copy(path, again)
        database = Database.open(again, self.key, schema=_SCHEMA)
        database.run_sync(_forget)
        database.close()
        self.open(again)
        self.cut.clear()
        if latest:
            self.run(self.revocation.learn(latest, "restore"))
        self.regs = {n: replace(one, status=self.status(one, n in ended)) for n, one in regs.items()}
        assert set(self.cut) == {n for n, one in regs.items() if one.status == "active" and n in ended}
        self.invited = [replace(one, open=False) for one in self.invited]
        self.issued = self.issued[:issued]
        self.next = (following - 1) // ENROLMENT_STEP * ENROLMENT_STEP + ENROLMENT_STEP + 1
        self.saved = None

    @staticmethod
    def status(one: Reg, ended: bool) -> str:
        return "revoked" if ended and one.status == "active" else one.status

    # --- what must hold ----------------------------------------------------------------------------------------------

    def device_id(self, device: int) -> bytes:
        from transport.primitives import sha256

        return sha256(KEYS[device].public.spki)

    def took(self, number: int, joined: Any) -> None:
        assert joined.enrolment == number
        peer = verify_svid(joined.issued.chain, self.authority.bundle, role="edge", now=self.clock())
        self.issued.append((number, peer))

    @invariant()
    def certificates_are_admitted_as_long_as_their_registration(self) -> None:
        counts: dict[int, int] = {}
        for number, peer in reversed(self.issued):
            counts[number] = counts.get(number, 0) + 1
            if self.regs[number].status == "active" and counts[number] <= LIVE_MAX:
                self.enrolment.admit(peer)
            else:
                with pytest.raises(IdentityRefused):
                    self.enrolment.admit(peer)

    @invariant()
    def the_registrations_are_those_of_the_model(self) -> None:
        if self.database is not None:
            real = {one.enrolment: (one.id.split("/", 3)[3], one.status) for one in self.enrolment.registrations()}
            assert real == {number: (one.id, one.status) for number, one in self.regs.items()}

    @invariant()
    def the_list_has_all_that_ended_and_goes_on_from_the_last(self) -> None:
        if self.database is None:
            return
        self.run(self.revocation.refresh())
        ended = {number for number, one in self.regs.items() if one.status != "active"}
        assert self.revocation.list.enrolments == ended
        if ended:
            self.held = read_list(self.revocation.list.data, self.authority.bundle, now=self.clock(), held=self.held)
            assert self.held.enrolments == ended

    def teardown(self) -> None:
        if self.database is not None:
            assert self.audit is not None
            self.run(self.audit.close())
            self.database.close()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def test_revocation_against_a_model() -> None:
    run_state_machine_as_test(Machine, settings=settings(  # type: ignore[no-untyped-call]
        max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    ))
