// The pipe of docs/SPEC.md section 9.1, as transport/links/gatt.py has it: ordered bytes in values that a radio may
// reorder or drop. Values and seconds come in. RangeError: the peer broke the rules; Error: the radio lost something.

const WINDOW = 32, GAP_S = 2, STARVED_S = 30, REPEAT_S = 1, NEVER = Infinity;
const four = (count) => [count >>> 24, count >>> 16, count >>> 8, count];
const word = (value, at) => value.slice(at, at + 4).reduce((count, byte) => 256 * count + byte, 0);
function check(right, words) {
  if (!right) throw new RangeError(words);
}

// Who the peripheral is (1 hop, 2 edge), the longest value it takes, how many may be sent at first.
export function readInfo(value) {
  const [version, role, high, low, credit] = value, size = 256 * high + low;
  check(value.length === 5 && version === 1 && (role === 1 || role === 2), "another version");
  check(size >= 20 && size <= 495 && credit > 0 && credit <= WINDOW, "bounds");
  return { role, size, credit };
}

// `size` of values to send; `limit` and `granted`: how many this end and its peer may send before the first grant.
export function makePipe(size, limit, granted, start) {
  let ready = [], came = 0, promised = 0, gapAt = NEVER, movedAt = start; // what comes
  let parts = [], buffered = 0, sent = 0, markAt = NEVER, starvedAt = NEVER; // what goes
  let end = "", last = NEVER, ownEnd = -1, sayEnd, saidAt = NEVER, closing, toldAt = start;
  const held = new Map(), grants = [granted]; // values that wait for their turn; the peer may know only the first grant

  const reach = () => Math.min(came - ready.length + WINDOW, 2 ** 32 - 1);
  const due = () => reach() - grants.at(-1) >= WINDOW / 2;
  const ended = () => came === last;
  const finished = () => saidAt < NEVER && last < NEVER && (closing || ended());
  const repeats = () => grants.length > 1 && grants[0] === promised && !end && toldAt <= movedAt + STARVED_S;
  let tell = due();

  function drop() {
    parts = [];
    buffered = 0;
    starvedAt = NEVER;
  }
  function own(reason) {
    sayEnd ||= ownEnd < 0;
    if (ownEnd < 0) ownEnd = reason;
  }
  // The peer has sent so many; one that is missing is waited for.
  function has(count, now, moved) {
    check(count <= grants.at(-1) && count <= last, "not granted, or after the end");
    promised = Math.max(promised, count);
    while (grants.length > 1 && grants[0] < promised) grants.shift();
    if (promised === came) gapAt = NEVER;
    else if (gapAt === NEVER || moved) gapAt = now + GAP_S;
  }

  return {
    ended, // the peer, and all before it is here
    finished, // both ends
    buffered: () => buffered,
    send(bytes) { // at most 64 KiB in all
      if (closing || buffered + bytes.length > 65536) throw new TypeError("too much, or too late");
      if (ownEnd >= 0 || !bytes.length) return;
      parts.push(bytes);
      buffered += bytes.length;
    },
    end(reason) { // both directions, for 0 (done) after what is queued; what still comes is not kept
      own(reason);
      closing = true;
      ready = [];
      tell ||= due();
      if (reason || end) drop();
    },
    next(now) { // the value to send now, if any
      if (tell) {
        tell = false;
        toldAt = now;
        markAt = NEVER;
        if (reach() > grants.at(-1)) grants.push(reach());
        return Uint8Array.of(0x80, ...four(reach()), ...four(sent));
      }
      if (buffered && sent < limit) {
        markAt = now + REPEAT_S; // when the peer is told of it, unless more leaves before
        const value = new Uint8Array(Math.min(size, buffered + 1));
        value[0] = sent++ & 127;
        for (let at = 1; at < value.length;) {
          const piece = parts[0].subarray(0, value.length - at);
          value.set(piece, at);
          at += piece.length;
          parts[0] = parts[0].subarray(piece.length);
          if (!parts[0].length) parts.shift();
        }
        buffered -= value.length - 1;
        return value;
      }
      if (buffered) starvedAt = Math.min(starvedAt, now + STARVED_S);
      if (buffered || !sayEnd) return null;
      sayEnd = false;
      saidAt = now;
      markAt = NEVER;
      return Uint8Array.of(0x81, ownEnd, ...four(sent));
    },
    take(value, now) { // from the peer, to be kept
      const [kind, reason] = value, size = value.length;
      check(size && size <= 495, "empty or too long");
      if (kind < 0x80) {
        const number = came + ((kind - came) & 127);
        check(size > 1 && number < Math.min(last, grants.at(-1)) && !held.has(number), "empty, twice or not granted");
        held.set(number, value.subarray(1));
        for (; held.has(came); came++) {
          if (!closing) ready.push(held.get(came));
          held.delete(came);
        }
        movedAt = now;
        has(number + 1, now, number < came);
      } else if (kind === 0x80 && size === 9) {
        const grant = word(value, 1);
        check(grant <= sent + WINDOW, "more than a window");
        if (grant > limit) starvedAt = NEVER;
        limit = Math.max(limit, grant);
        has(word(value, 5), now);
      } else {
        check(kind === 0x81 && size === 6 && reason < 5, "unknown");
        if (end && now >= saidAt + REPEAT_S / 2) sayEnd = true; // asked again: this end was not heard
        check(word(value, 2) >= promised && (!end || end === String(value)), "another end");
        has(word(value, 2), now);
        last = word(value, 2);
        end = String(value);
      }
      if (closing) tell ||= due();
      if (end && (closing || ended())) {
        drop(); // nobody reads it any more
        own(0);
      }
    },
    read() { // all that is here in order; the peer is told of the room in halves
      const bytes = new Uint8Array(ready.reduce((sum, part) => sum + part.length, 0));
      let at = 0;
      for (const part of ready) bytes.set(part, (at += part.length) - part.length);
      ready = [];
      tell ||= !end && due();
      return bytes;
    },
    deadline() { // of `tick`
      if (finished()) return NEVER;
      const telling = tell ? NEVER : Math.min(markAt, repeats() ? toldAt + REPEAT_S : NEVER);
      return Math.min(telling, starvedAt, !closing ? gapAt : sayEnd ? NEVER : saidAt + REPEAT_S);
    },
    tick(now) {
      if (finished()) return;
      if ((!closing && now >= gapAt) || now >= starvedAt) throw new Error("lost");
      tell ||= now >= markAt || (repeats() && now >= toldAt + REPEAT_S);
      sayEnd ||= closing && now >= saidAt + REPEAT_S;
    },
  };
}
