// The pipe of docs/SPEC.md section 9.1, by the rules of transport/links/gatt.py: bytes in values that a radio may reorder
// or drop. Values and seconds come in. Throws RangeError if the peer broke the rules, Error if something was lost.

const WINDOW = 32, GAP_S = 2, STARVED_S = 30, REPEAT_S = 1, NEVER = Infinity;
const four = (count) => [count >>> 24, count >>> 16, count >>> 8, count];
const word = (value, at) => value.slice(at, at + 4).reduce((count, byte) => 256 * count + byte, 0);
const join = (...parts) => {
	const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
	parts.reduce((at, part) => whole.set(part, at) ?? at + part.length, 0);
	return whole;
};
const check = (right) => {
	if (!right) throw new RangeError("broken");
};

// role: 1 hop, 2 edge; size of the values it takes; credit: how many may be sent at first.
export function readInfo(value) {
	const [version, role, high, low, credit] = value, size = 256 * high + low;
	check(value.length === 5 && version === 1 && (role === 1 || role === 2));
	check(size >= 20 && size <= 495 && credit > 0 && credit <= WINDOW);
	return { role, size, credit };
}

// `limit` and `granted`: values that this end and its peer may send before the first grant.
export function makePipe(size, limit, granted, start) {
	let ready = [], came = 0, promised = 0, gapAt = NEVER, movedAt = start; // what comes
	let queue = join(), sent = 0, markAt = NEVER, starvedAt = NEVER; // what goes
	let end = "", last = NEVER, ownEnd = -1, sayEnd, saidAt = NEVER, closing, toldAt = start;
	const held = new Map(), grants = [granted]; // the peer may know only the first of them

	const reach = () => came - ready.length + WINDOW;
	const due = () => reach() - grants.at(-1) >= WINDOW / 2;
	const ended = () => came === last;
	const finished = () => saidAt < NEVER && last < NEVER && (closing || ended());
	const repeats = () => grants.length > 1 && grants[0] === promised && !end && toldAt <= movedAt + STARVED_S;
	let tell = due();

	function drop() {
		queue = join();
		starvedAt = NEVER;
	}
	function own(reason) {
		if (ownEnd >= 0) return;
		ownEnd = reason;
		sayEnd = true;
	}
	// The peer has sent so many; one that is missing is waited for.
	function has(count, now, moved) {
		check(count <= Math.min(grants.at(-1), last));
		promised = Math.max(promised, count);
		while (grants.length > 1 && grants[0] < promised) grants.shift();
		if (promised === came) gapAt = NEVER;
		else if (gapAt === NEVER || moved) gapAt = now + GAP_S;
	}

	return {
		ended, // the peer, and all before it is here
		finished, // both ends
		buffered: () => queue.length,
		send(bytes) { // at most 64 KiB in all
			if (closing || queue.length + bytes.length > 65536) throw new TypeError("full");
			if (ownEnd < 0) queue = join(queue, bytes);
		},
		end(reason) { // both ways, for 0 (done) after what is queued; what still comes is dropped
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
				if (due()) grants.push(reach());
				return Uint8Array.of(0x80, ...four(grants.at(-1)), ...four(sent));
			}
			if (queue.length && sent < limit) {
				markAt = now + REPEAT_S; // when to say so, unless more leaves before
				const value = join([sent++ & 127], queue.subarray(0, size - 1));
				queue = queue.subarray(size - 1);
				return value;
			}
			if (queue.length) starvedAt = Math.min(starvedAt, now + STARVED_S);
			if (queue.length || !sayEnd) return null;
			sayEnd = false;
			saidAt = now;
			markAt = NEVER;
			return Uint8Array.of(0x81, ownEnd, ...four(sent));
		},
		take(value, now) { // from the peer
			const [kind, reason] = value, size = value.length;
			check(size && size <= 495);
			if (kind < 0x80) {
				const number = came + ((kind - came) & 127);
				check(size > 1 && number < Math.min(last, grants.at(-1)) && !held.has(number));
				held.set(number, value.subarray(1));
				for (; held.has(came); held.delete(came++)) if (!closing) ready.push(held.get(came));
				movedAt = now;
				has(number + 1, now, number < came);
			} else if (kind === 0x80 && size === 9) {
				const grant = word(value, 1);
				check(grant <= sent + WINDOW);
				if (grant > limit) starvedAt = NEVER;
				limit = Math.max(limit, grant);
				has(word(value, 5), now);
			} else {
				const count = word(value, 2);
				check(kind === 0x81 && size === 6 && reason < 5 && count >= promised && (!end || end === String(value)));
				if (end && now >= saidAt + REPEAT_S / 2) sayEnd = true; // asked again: this end was not heard
				has(count, now);
				last = count;
				end = String(value);
			}
			if (closing) tell ||= due();
			if (!end || !(closing || ended())) return;
			drop();
			own(0);
		},
		read() { // all that is here; the peer is told of the room in halves
			const bytes = join(...ready);
			ready = [];
			tell ||= !end && due();
			return bytes;
		},
		tick(now) { // a few times a second
			if (finished()) return;
			if ((!closing && now >= gapAt) || now >= starvedAt) throw new Error("lost");
			tell ||= now >= markAt || (repeats() && now >= toldAt + REPEAT_S);
			sayEnd ||= closing && now >= saidAt + REPEAT_S;
		},
	};
}
