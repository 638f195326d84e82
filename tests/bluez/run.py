"""The steps of `scripts/test-bluez`, run inside its machine: `python -m tests.bluez.run [STEP...]`."""

import asyncio
import contextlib
import sys
import time
import traceback

from tests.bluez import links, phone, rfcomm, sessions
from tests.bluez.stack import Stack

STEPS = {**links.STEPS, **phone.STEPS, **rfcomm.STEPS, **sessions.STEPS}
LIMIT_S = 150.0  # of one step; on a machine at rest the longest takes a quarter of it


async def main(names: list[str]) -> int:
    if unknown := set(names) - STEPS.keys():
        print(f"there is no step {', '.join(sorted(unknown))}; they are {', '.join(STEPS)}")
        return 2
    chosen = names or list(STEPS)
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
            async with asyncio.timeout(LIMIT_S):
                said, result = await STEPS[name](stack), "passed"
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
