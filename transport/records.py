"""Records: length-prefixed AES-256-GCM, padded by burst, rekeyed by the sender. docs/SPEC.md section 5.

    record  = length(2, big-endian) || ciphertext || tag(16)      length = of ciphertext and tag, 17 to 16,400
    inside  = (message length(2) || message)*, then zeros up to the record's end (a length of zero begins them)

The length bytes are the associated data. Nonces are implicit counters, one key per direction; a lost, reordered,
repeated or altered record fails, and after a failure the opener is dead: keys belong to one link.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final

from transport.errors import LocalMisuse, ProtocolViolation
from transport.messages import MESSAGE_MAX, RECORD_PLAINTEXT_MAX, Message, Rekey, decode, encode
from transport.noise import TAG_LEN, CipherState

LENGTH_LEN: Final = 2
RECORD_MIN: Final = TAG_LEN + 1
RECORD_MAX: Final = RECORD_PLAINTEXT_MAX + TAG_LEN
REKEY_RECORDS: Final = 1 << 20  # NIST SP 800-38D keeps far above; small enough that a key covers little
REKEY_BYTES: Final = 1 << 30
REKEY_SECONDS: Final = 15 * 60
REKEY_FLOOR_BYTES: Final = 64 * 1024  # a peer may not rekey more often than every so many bytes ...
REKEY_FLOOR_SECONDS: Final = 10.0  # ... or seconds
CONTROL_BLOCK: Final = 64
BURST_FLOOR: Final = 512
_POWERS_UP_TO: Final = 4_096
_REKEY: Final = encode(Rekey())
REKEY_ROOM: Final = LENGTH_LEN + len(_REKEY)  # what every cell keeps free
_length_bytes: Final = Struct(">H").pack


def padded_length(length: int, *, control: bool) -> int:
    """How many plaintext bytes a burst of `length` takes on the wire.

    Control bursts: a multiple of 64. Others: at least 512, powers of two to 4 KiB, then Padme (Nikitin et al., PETS
    2019, section 4), which leaks O(log log L) bits at 12 % overhead at most.
    """
    if control:
        return -(-length // CONTROL_BLOCK) * CONTROL_BLOCK
    if length <= _POWERS_UP_TO:
        return max(BURST_FLOOR, 1 << (length - 1).bit_length())
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask


def pack(messages: Sequence[bytes]) -> list[bytes]:
    """Encoded messages into record plaintexts, each message whole in one record."""
    plaintexts: list[bytes] = []
    current = bytearray()
    for message in messages:
        if not 0 < len(message) <= MESSAGE_MAX:
            raise LocalMisuse("message does not fit a record")
        if current and len(current) + LENGTH_LEN + len(message) > RECORD_PLAINTEXT_MAX:
            plaintexts.append(bytes(current))
            current.clear()
        current += len(message).to_bytes(LENGTH_LEN, "big") + message
    if current:
        plaintexts.append(bytes(current))
    return plaintexts


def pad(plaintexts: Sequence[bytes], *, control: bool) -> list[bytes]:
    """Zeros behind the messages: all records full but the last, so that sizes tell the padded total and no more."""
    total = (len(plaintexts) - 1) * RECORD_PLAINTEXT_MAX + len(plaintexts[-1])
    target = padded_length(total, control=control)
    full, rest = divmod(target, RECORD_PLAINTEXT_MAX)
    sizes = [RECORD_PLAINTEXT_MAX] * full + ([rest] if rest else [])
    contents = [*plaintexts, *[b""] * (len(sizes) - len(plaintexts))]
    return [content.ljust(size, b"\0") for content, size in zip(contents, sizes, strict=True)]


def unpack(plaintext: bytes) -> list[bytes]:
    """The encoded messages of a record, perhaps none. Raises ProtocolViolation for a cut one, or padding not zero."""
    messages: list[bytes] = []
    position = 0
    while position < len(plaintext):
        length = int.from_bytes(plaintext[position : position + LENGTH_LEN], "big")
        if length == 0:
            break
        position += LENGTH_LEN
        if length > len(plaintext) - position:
            raise ProtocolViolation("message is cut short")
        messages.append(plaintext[position : position + length])
        position += length
    if plaintext.count(0, position) != len(plaintext) - position:
        raise ProtocolViolation("padding is not zero")
    return messages


class RecordSealer:
    """Seals bursts of messages in one direction. `now` in unix seconds that never fall."""

    __slots__ = ("_bytes", "_cipher", "_padding", "_records", "_since")

    def __init__(self, cipher: CipherState, now: float, *, padding: bool = True) -> None:
        self._cipher = cipher
        self._padding = padding
        self._since, self._records, self._bytes = now, 0, 0  # what the key has done, and since when

    def rest(self) -> None:
        """Takes less memory until it is used again."""
        self._cipher.rest()

    def seal_burst(self, messages: Sequence[bytes], now: float, *, control: bool = False) -> bytes:
        """All records of one burst of encoded messages; `control` says that they are flow control alone.

        Raises LocalMisuse for no message or one that is too long.
        """
        if not messages:
            raise LocalMisuse("a burst needs a message")
        plaintexts = pack(messages)
        if self._padding:
            plaintexts = pad(plaintexts, control=control)
        if len(plaintexts) == 1:
            return self._seal(plaintexts[0], now)
        return b"".join([self._seal(plaintext, now) for plaintext in plaintexts])

    def seal_record(self, plaintext: bytes) -> bytes:
        """One record of exactly these bytes; for record 0, whose padding the handshake decides."""
        length = len(plaintext)
        if not 0 < length <= RECORD_PLAINTEXT_MAX:
            raise LocalMisuse("record plaintext has a bad length")
        header = _length_bytes(length + TAG_LEN)
        self._records += 1
        self._bytes += length
        return header + self._cipher.encrypt(header, plaintext)

    def seal_cell(self, messages: Sequence[bytes], size: int, now: float) -> bytes:
        """One record of exactly `size` plaintext bytes, perhaps padding alone. A rekey that is due rides in it.

        Raises LocalMisuse if encoded `messages` with their lengths take more than `size` - REKEY_ROOM bytes.
        """
        content = b"".join(len(message).to_bytes(LENGTH_LEN, "big") + message for message in messages)
        if len(content) > size - REKEY_ROOM:
            raise LocalMisuse("messages do not fit a cell")
        rekey = self._records >= REKEY_RECORDS or self._bytes >= REKEY_BYTES or now - self._since >= REKEY_SECONDS
        if rekey:
            content += len(_REKEY).to_bytes(LENGTH_LEN, "big") + _REKEY
        record = self.seal_record(content.ljust(size, b"\0"))
        if rekey:
            self._cipher.rekey()
            self._since, self._records, self._bytes = now, 0, 0
        return record

    def stop_padding(self) -> None:
        """From the next burst on nothing is padded."""
        self._padding = False

    def _seal(self, plaintext: bytes, now: float) -> bytes:
        record = self.seal_record(plaintext)
        if self._records >= REKEY_RECORDS or self._bytes >= REKEY_BYTES or now - self._since >= REKEY_SECONDS:
            # The notice is a record of its own, the last one under the old key.
            record += self.seal_record(pad(pack([_REKEY]), control=True)[0])
            self._cipher.rekey()
            self._since, self._records, self._bytes = now, 0, 0
        return record


class RecordOpener:
    """Opens records of one direction from bytes as they come; holds at most what was fed and one record.

    After any exception it is dead: the key is dropped, and every later call raises LocalMisuse.
    """

    __slots__ = ("_at", "_buffer", "_bytes", "_cipher", "_records", "_since")

    def __init__(self, cipher: CipherState, now: float) -> None:
        self._cipher: CipherState | None = cipher
        self._since, self._records, self._bytes = now, 0, 0
        self._buffer, self._at = b"", 0  # what was fed, and how far it has been opened

    def rest(self) -> None:
        """Takes less memory until it is used again."""
        if self._cipher is not None:
            self._cipher.rest()

    @property
    def buffered(self) -> int:
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        # Mostly nothing is left over: then the bytes are taken as they are, without a copy.
        self._buffer = self._buffer[self._at :] + data if self._buffer else data
        self._at = 0

    def next_plaintext(self) -> bytes | None:
        """What is inside the next whole record; None until it is there.

        Raises ProtocolViolation for a bad length or a key used beyond twice its limits, DecryptFailed for a bad tag.
        """
        cipher = self._cipher
        if cipher is None:
            raise LocalMisuse("this direction has ended")
        buffer, start = self._buffer, self._at + LENGTH_LEN
        if len(buffer) < start:
            return None
        header = buffer[start - LENGTH_LEN : start]
        length = header[0] << 8 | header[1]
        end = start + length
        try:
            if not RECORD_MIN <= length <= RECORD_MAX:
                raise ProtocolViolation("record length is out of bounds")
            if len(buffer) <= end:  # what was opened is not kept
                if len(buffer) < end:
                    self._buffer, self._at = buffer[start - LENGTH_LEN :], 0
                    return None
                self._buffer, self._at = b"", 0
            else:
                self._at = end
            self._records += 1
            self._bytes += length - TAG_LEN
            if self._records > 2 * REKEY_RECORDS or self._bytes > 2 * REKEY_BYTES:
                raise ProtocolViolation("peer did not rekey in time")
            return cipher.decrypt(header, buffer[start:end])
        except BaseException:
            self._cipher = None
            raise

    def next_record(self) -> tuple[bytes, bytes] | None:
        """(record as sent, plaintext), or None; raises as `next_plaintext` does."""
        ahead = self._buffer[self._at :]
        plaintext = self.next_plaintext()
        return None if plaintext is None else (ahead[: LENGTH_LEN + len(plaintext) + TAG_LEN], plaintext)

    def next_messages(self, now: float) -> list[Message] | None:
        """The messages of the next whole record, perhaps none; `Rekey` is carried out here and not returned."""
        plaintext = self.next_plaintext()
        if plaintext is None:
            return None
        cipher, self._cipher = self._cipher, None
        messages = [decode(message) for message in unpack(plaintext)]
        for message in messages[:-1]:
            if isinstance(message, Rekey):
                raise ProtocolViolation("rekey is not the last message of its record")
        self._cipher = cipher
        if messages and isinstance(messages[-1], Rekey):
            messages.pop()
            self._rekey(now)
        return messages

    def _rekey(self, now: float) -> None:
        cipher, self._cipher = self._cipher, None
        if self._bytes < REKEY_FLOOR_BYTES and now - self._since < REKEY_FLOOR_SECONDS:
            raise ProtocolViolation("peer rekeys too often")
        if cipher is not None:
            cipher.rekey()
        self._since, self._records, self._bytes = now, 0, 0
        self._cipher = cipher
