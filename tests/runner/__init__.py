"""
Runs the tests in several processes: C{python -m tests.runner tests}.

The parent process (L{tests.runner.pool}) gives batches of test modules, the longest first, to worker
processes (L{tests.runner.worker}). Each worker runs its batch with trial's own runner, in a temporary
directory of its own, and reports every outcome as it happens.

Many tests wait most of the time: for a server, or a time limit. So there are more processes than processors,
but only as many as are expected to keep them busy, by what was recorded: with more, tests would measure each
other.

All these processes, the daemons that need no special environment, and pcapctl without a terminal are forked
from three that have imported what they import (L{peers.nursery}): tests start hundreds of them, and the
imports would be a quarter of all that a run costs.

Why not C{trial -j}: it distributes single tests, and wraps each in a suite of its own, so that a server that
several tests share is started in every worker, and the reactor is shut down after every test. It does not
end a worker that hangs, and can't give a test the machine to itself.

Tests that measure time, lost packets or memory say so with C{needs_machine_alone = True} on their class or
module, or C{test_x.needs_machine_alone = True}. They run one after the other, when all others are done.
"""
