"""A limit on everything that a peer or a person can make large, with its unit and its reason."""

#: version of the client and worker dialogues; another number is refused with both named
PROTOCOL = 1

# frames and messages
FRAME_BYTES_MAX = 192 << 10  #: one value above this travels as its digest
FUNCTION_BYTES_MAX = 64 << 10  #: a function above this travels as its digest: it goes to every slot
PARCEL_BYTES_MAX = 384 << 10  #: a parcel of several inputs
#: values, failures and logs of a result of several subtasks; leaves room for their meters
RESULT_VALUES_BYTES_MAX = 384 << 10
RESULT_FRAME_BYTES_MAX = 448 << 10  #: all frames of one result together
HEADER_BYTES_MAX = 64 << 10  #: an encoded header
#: number in a header that clients and workers send, either sign: the journal's and the ledger's
#: columns have 64 bits with a sign, and a sum of two must fit, too
INTEGER_MAX = (1 << 62) - 1
#: ZMQ_MAXMSGSIZE of every listening socket: a larger frame drops its peer
ZMQ_FRAME_BYTES_MAX = 512 << 10
MESSAGE_FRAMES_MAX = 600  #: frames in one message
RESULTS_PER_REPORT_MAX = 64  #: results in one report
LEASES_PER_ORDERS_MAX = 64  #: leases in one orders message

# jobs
PARCEL_ITEMS_MAX = 8_192  #: items in one parcel
PARCEL_NUMBERS_TARGET = 8_000  #: a slot decodes no more of them than it runs
PARCEL_TUPLES_TARGET = 4_000  #: a slot decodes them once
PARCEL_OBJECTS_TARGET = 2_000  #: anything else: each lease decodes its parcels anew
RANGE_ITEMS_MAX = 65_536  #: items in one parcel of the ``range`` codec (its frame is 16 bytes)
SUBTASKS_MAX = 100_000_000  #: subtasks in one job
SEGMENT_SUBTASKS = 65_536  #: subtasks in one segment of a job's columns
DECOMPOSED_MAX = 100_000  #: subtasks that a decomposer may return
JOBS_PER_TENANT_MAX = 10_000  #: unfinished jobs of one tenant
QUEUED_SUBTASKS_MAX = 200_000_000  #: unfinished subtasks of the whole grid
SUBTASKS_PER_TENANT_MAX = 100_000_000  #: unfinished subtasks of one tenant
NAME_CHARS_MAX = 200  #: names of jobs, workers, tenants, labels
ARGV_BYTES_MAX = 32 << 10  #: a command with its arguments and environment
LABELS_MAX = 64
RETRIES_MAX = 100
PATH_BYTES_MAX = 3_000  #: of a file in or out of a subtask, below its working directory
PATH_PART_BYTES_MAX = 255  #: the kernel's own
PATH_DEPTH_MAX = 64  #: its folders
REPLICAS_MAX = 7  #: of one subtask of a job with a quorum
UNDECIDED_MAX = 4_096  #: subtasks of one job with a result that waits for others
FILES_MAX = 1_000  #: files in or out of one subtask

# leases
LEASE_RUNS_MAX = 64  #: runs in one lease
LEASE_PARCEL_BYTES_MAX = 1536 << 10  #: parcel frames sent with one lease
LEASE_TARGET_US = 20_000  #: work of a slot that a lease aims at
LEASE_FLOOR_US = 1_000  #: less work than this is not worth a lease of its own
LEASES_PER_SLOT = 2  #: hides the round trip
LEASE_ITEMS_MAX = 16_384
OPEN_JOBS_TOLD_MAX = 512  #: in one report
RESULT_FLUSH_MS = 20  #: a slot hands over what it has at least this often

# time
REPORT_MS = 1_000  #: a worker reports at least this often; the broker says how often
TTL_MS = 3_500  #: a slot not seen alive for this long loses its leases
PROBE_MS = 400  #: a worker with leases that was silent for this long is sent something
REPORTS_PER_SECOND_MAX = 500  #: of the whole fleet: interval and ttl grow beyond it
CLIENT_PING_MS = 1_000
CLIENT_TTL_MS = 15_000  #: a client silent for this long loses its session (its jobs go on)
COALESCED_JOB_REST_MS = 60_000  #: an open-ended job of single submits closes after this rest
GRANT_TTL_MS = 15 * 60_000
DECOMPOSE_WALL_MS = 60_000

# credit
INPUT_CREDIT_BYTES = 8 << 20  #: parcels of one job on the way that the journal has not yet got
OUTPUT_CREDIT_BYTES = 8 << 20  #: results of one job on the way that the client has not yet taken
#: parcels that the broker keeps in memory; the rest is read back from the journal
PARCEL_CACHE_BYTES = 64 << 20
RESULT_CACHE_BYTES = 64 << 20
TENANT_DISK_BYTES = 32 << 30  #: parcels and unread results of one tenant on the broker's disk
#: contributions spooled while the ledger is down; past it new jobs wait
OUTBOX_ROWS_MAX = 1_000_000

# outputs of a subtask
OUTPUT_BYTES = 1 << 20  #: stdout and stderr kept, unless the job asks for more
OUTPUT_BYTES_MAX = 64 << 20
LOG_INLINE_BYTES_MAX = 8 << 10  #: a longer log goes to the store
# output of running subtasks, as it is written
LINES_PIECES_MAX = 64  #: pieces in one message
LINES_PIECE_BYTES_MAX = 32 << 10
LINES_BYTES_MAX = 1 << 20  #: all pieces of one message together
LINES_HEAD_BYTES = 512 << 10  #: of each stream of an attempt the broker keeps the first, and
LINES_TAIL_BYTES = 512 << 10  #: the last bytes: all, unless the job asks for more than OUTPUT_BYTES
LINES_JOB_BYTES_MAX = 64 << 20  #: of all running and lost attempts of one job
VALUE_BYTES_MAX = 2 << 30  #: one value, by way of the store
BLOB_BYTES_MAX = 64 << 30

# rates, of each key over TCP (operators and workers: only what their principals say)
REQUESTS_PER_S = 2_000  #: messages of a client; a map sends a few for each 8,000 subtasks
REQUESTS_BURST = 10_000
BYTES_PER_S = 64 << 20  #: what clients send
BYTES_BURST = 256 << 20
HELLO_REQUESTS = 10  #: requests that a HELLO counts as
SESSIONS_PER_KEY_MAX = 1_000
#: of a worker's key: HELLOs and refused messages; reports are not counted
WORKER_REQUESTS_PER_S = 20
WORKER_REQUESTS_BURST = 1_000
RATE_ANSWERS_MAX = 64  #: refusals that are answered until a rate lets something pass again
RETRY_MS_MAX = 60_000  #: a client that was told to wait longer asks again after this
#: connections of a key, and of strangers from one address, before new ones are told to come later
CONNECTIONS_PER_S = 50
CONNECTIONS_BURST_S = 20  #: what so many seconds bring may come at once
#: lines of log about refusals: for each key (or address of strangers) and second one; of so many
REFUSED_NAMES_MAX = 32

# sessions and links
SESSIONS_MAX = 20_000
WORKERS_MAX = 20_000
SLOTS_PER_WORKER_MAX = 1_024
