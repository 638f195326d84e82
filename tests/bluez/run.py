"""The steps of `scripts/test-bluez`, run inside its machine: `python -m tests.bluez.run [STEP...]`."""

import asyncio
import contextlib
import sys
import time
import traceback

from tests.bluez import beside, eatt, links, phone, rfcomm, rfcomm_faults, sessions
from tests.bluez.stack import Stack

STEPS = {
    **links.STEPS, **eatt.STEPS, **phone.STEPS, **rfcomm.STEPS, **rfcomm_faults.STEPS, **sessions.STEPS,
    **eatt.SESSION_STEPS,
}
NAMED = {**links.SUITE, **beside.STEPS}  # which run when they are named
CI = (  # what continuous integration has the time for
    "advertisement", "bulk", "eatt", "rfcomm-bulk", "rfcomm-join-and-ask", "session-join-and-ask",
    "session-large-prompt", "session-eatt", "session-drop-and-resume", "session-adapter-removed",
)
LIMIT_S = 300.0  # of one step; on a machine at rest the longest takes a seventh of it
NAMED_LIMIT_S = 700.0  # of one that was named


async def main(names: list[str]) -> int:
    steps = {**STEPS, **NAMED}
    chosen = list(CI) if names == ["ci"] else names or list(STEPS)
    if unknown := set(chosen) - steps.keys():
        print(f"there is no step {', '.join(sorted(unknown))}; they are {', '.join(steps)}, and `ci` for some of them")
        return 2
    begun = time.monotonic()
    stack = Stack()
    async with asyncio.timeout(LIMIT_S):
        await stack.start()
    print(f"BlueZ up after {time.monotonic() - begun:.1f} s", flush=True)
    rows = []
    for number, name in enumerate(chosen, 1):
        print(f"{number:2}/{len(chosen)} {name}", flush=True)
        began = time.monotonic()
        try:
            async with asyncio.timeout(NAMED_LIMIT_S if name in NAMED else LIMIT_S):
                said, result = await steps[name](stack), "passed"
        except Exception:  # the next step may pass all the same, and says more
            traceback.print_exc(file=sys.stdout)
            said, result = "", "FAILED"
        rows.append((name, result, time.monotonic() - began, said))
        print(f"      {result} after {rows[-1][2]:.1f} s  {said}", flush=True)
    width = max(len(row[0]) for row in rows)
    print(f"\n{'step':{width}}  {'result':6}  {'seconds':>7}")
    for name, result, seconds, said in rows:
        print(f"{name:{width}}  {result:6}  {seconds:7.1f}  {said}")
    with contextlib.suppress(Exception):
        async with asyncio.timeout(LIMIT_S):
            await stack.close()
    return 0 if all(row[1] == "passed" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
