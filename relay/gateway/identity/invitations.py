"""Invitations to join: made, looked at, bound by their first use, voided."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import SetupRefused
from relay.gateway.identity.ca import Authority
from store.database import Connection, Database
from transport.errors import BadInput
from transport.identity.join import SECRET_LEN, TOKEN_ID_LEN, Invitation
from transport.identity.svid import SpiffeId
from transport.primitives import Secret, random_bytes, same_bytes, sha256

INVITATION_MAX_S: Final = 3_600
ORDINARY_ROLES: Final = ("edge", "hop", "workload")
PRIVILEGED_ROLES: Final = ("gateway", "admin")  # an invitation for these needs to be asked for explicitly
PROBE_NAME: Final = "relay-doctor"  # nobody else's, in any role; see `probes`


class Invitations:
    """Owns the table `invitations`."""

    def __init__(self, database: Database, authority: Authority, audit: AuditLog, clock: Callable[[], float]) -> None:
        self._database = database
        self._authority = authority
        self._audit = audit
        self._clock = clock

    async def make(
        self, role_path: str, *, hints: Sequence[str] = (), ttl_s: int = INVITATION_MAX_S, allow_gateway: bool = False,
        tpm: bool = False,
    ) -> Invitation:
        """A new invitation for one ID, `role/name`. Only a hash of its secret is kept. `tpm`: a device may use it only
        if it shows that its key lies in a TPM.

        Raises BadInput for an ID or hint that is none, SetupRefused for a lifetime outside 1..3,600 s, an unknown role
        or, without `allow_gateway`, a privileged one, and for one that cannot show a TPM; AuditUnavailable.
        """
        if not 1 <= ttl_s <= INVITATION_MAX_S:
            raise SetupRefused("an invitation is good for 1 second to 1 hour", hint="as in --ttl 600")
        identity = SpiffeId(self._authority.trust_domain, "/" + role_path)
        if identity.name == PROBE_NAME:
            raise SetupRefused("this name is that of the probes of `relay doctor`", hint="choose another name")
        if not known(identity):
            raise BadInput(
                "an invitation is for edge/NAME, hop/NAME, workload/NAME or gateway/NAME",
                hint="for example: relay gateway invite edge/lap-1",
            )
        if privileged(identity) and not allow_gateway:
            raise SetupRefused(
                "an invitation for a gateway or an administrator has to be asked for explicitly",
                hint="add --allow-gateway if that is what you mean; whoever holds it can pose as the gateway",
            )
        if tpm and identity.role != "edge":
            raise SetupRefused("only an edge can show its TPM", hint="as in: relay gateway invite edge/lap-1 --tpm")
        secret = Secret(random_bytes(SECRET_LEN))
        invitation = Invitation(
            sha256(self._authority.root), random_bytes(TOKEN_ID_LEN), secret, identity.trust_domain, role_path,
            tuple(hints),
        )
        now = int(self._clock())
        await self._audit.append(
            "invitation.made", id=str(identity), token=invitation.token_id.hex(), ttl_s=ttl_s, tpm=tpm
        )
        await self._database.run(lambda connection: connection.execute(
            "INSERT INTO invitations (token_id, secret_sha256, spiffe_id, created, expires, tpm)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (invitation.token_id, sha256(secret.expose()), str(identity), now, now + ttl_s, int(tpm)),
        ) and None)
        return invitation

    async def waiting(self, identity: str) -> int:
        """How many invitations for an ID wait for their first use. Raises StoreError."""
        now = int(self._clock())
        row = await self._database.run(lambda connection: connection.execute(
            "SELECT count(*) FROM invitations"
            " WHERE spiffe_id = ? AND voided = 0 AND device_id IS NULL AND expires > ?",
            (identity, now),
        ).fetchone(), read_only=True)
        assert row is not None
        return int(row[0])

    async def check_writable(self) -> None:
        """Writes to the state and takes it back, for whoever wants to know that a device could join. StoreError."""
        token, now = random_bytes(TOKEN_ID_LEN), int(self._clock())

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO invitations (token_id, secret_sha256, spiffe_id, created, expires, voided)"
                " VALUES (?, ?, '', ?, ?, 1)", (token, sha256(random_bytes(SECRET_LEN)), now, now),
            )
            connection.execute("DELETE FROM invitations WHERE token_id = ?", (token,))

        await self._database.run(work)


def look(
    connection: Connection, token_id: bytes, secret: Secret, device_id: bytes, roles: Collection[str], now: int,
    *, in_tpm: bool,
) -> tuple[str, int, str]:
    """What an invitation allows a device: (reason, whose or 0, id) if it is refused, ("", enrolment, id) if it is bound
    to it already, ("", 0, id) if not yet.
    """
    row = connection.execute(
        "SELECT secret_sha256, spiffe_id, expires, device_id, enrolment, voided, tpm FROM invitations"
        " WHERE token_id = ?",
        (token_id,),
    ).fetchone()
    if row is None or not same_bytes(row[0], sha256(secret.expose())):
        return "unknown invitation or wrong secret", 0, ""
    identity = str(row[1])
    if SpiffeId.parse(identity).role not in roles:
        return "this role does not join this way", 0, identity
    if row[5]:
        return "invitation ended by a revocation", 0, identity
    if now >= row[2]:
        return "invitation expired", 0, identity
    if row[6] and not in_tpm:
        return "invitation is for a device whose key lies in a TPM", 0, identity
    if row[3] is not None:
        if not same_bytes(row[3], device_id):
            return "invitation used with another device key", int(row[4]), identity
        return "", int(row[4]), identity
    return "", 0, identity


def bind(connection: Connection, token_id: bytes, device_id: bytes, enrolment: int) -> None:
    """The first use of an invitation."""
    connection.execute(
        "UPDATE invitations SET device_id = ?, enrolment = ? WHERE token_id = ?", (device_id, enrolment, token_id)
    )


def void_all(connection: Connection, identity: str) -> None:
    """Ends every invitation for an ID."""
    connection.execute("UPDATE invitations SET voided = 1 WHERE spiffe_id = ?", (identity,))


def prune(connection: Connection, now: int) -> None:
    """Forgets those that ran out a week ago."""
    connection.execute("DELETE FROM invitations WHERE expires < ?", (now - 7 * 86_400,))


def known(identity: SpiffeId) -> bool:
    return identity.name not in ("", PROBE_NAME) and identity.role in (*ORDINARY_ROLES, *PRIVILEGED_ROLES)


def privileged(identity: SpiffeId) -> bool:
    return identity.role in PRIVILEGED_ROLES or (
        identity.role == "workload" and identity.name.partition("/")[0] == "admin"
    )
