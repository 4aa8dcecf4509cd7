"""Stable names of the event log's lines (``RecordEvent.name``): never rename one, files have them.

``job`` is 0 for lines about a worker alone. Lines about leases are written only where something
went wrong: a lease that ends well is told by its results.
"""

HOLD_GRANTED = "hold.granted"  #: the ledger reserved the job's cap; recovery reads this
HOLD_REFUSED = "hold.refused"  #: detail: code, message
UPLOAD_CLOSED = "upload.closed"  #: detail: count; recovery reads this
CANCEL_ASKED = "cancel.asked"  #: detail: runs (absent: the whole job); recovery reads this
PAUSED = "job.paused"  #: detail: reason; recovery reads this
RESUMED = "job.resumed"  #: detail: failed (so far); recovery reads this
#: half, four fifths or all of the cap is spent; detail: percent, spent, cap; recovery reads this
CAP_NOTICE = "cap.notice"
CAP_REACHED = "cap.reached"  #: detail: spent, cap; recovery reads this
#: detail: lease, node, runs, cut (-1: nothing ran), attempt, cause; recovery reads this
LEASE_RESCUED = "lease.rescued"
LEASE_ADOPTED = "lease.adopted"  #: after a restart; detail: lease, node, runs
LEASE_RETURNED = "lease.returned"  #: detail: lease, node, runs, cause, detail
#: detail: lease, node, cause, runs; of many in a row only some, with how many there were: refusals
RESULT_REFUSED = "result.refused"
#: another replica is wanted; detail: sequence, subtask, attempt, owner, node, lease, outcome,
#: digest, amount_ucredits, entry (its contribution, MessagePack in hex); recovery reads this
RESULT_HELD = "result.held"
RESULT_SETTLED = "result.settled"  #: it is decided; detail: sequence, is_paid; recovery reads this
#: an attempt of a job with a quorum was not paid; detail: node, owner, lease, runs,
#: amount_ucredits, cause; recovery reads this
RESULT_UNPAID = "result.unpaid"
#: the job is a question with a known answer; detail: node, digest; recovery reads this
CANARY_SET = "canary.set"
CANARY_ENDED = "canary.ended"  #: detail: node, is_right
NODE_ON_TRIAL = "node.on_trial"  #: detail: as of the next
NODE_QUARANTINED = "node.quarantined"  #: detail: node, cause, name (of its worker, if it is there)
NODE_RELEASED = "node.released"  #: by an operator; detail: node
WORKER_JOINED = "worker.joined"  #: detail: name, node, slots
WORKER_LOST = "worker.lost"  #: detail: name, node, cause
WORKER_DRAINING = "worker.draining"  #: detail: name, node
