"""The Celery application: imported by the client and by ``celery worker``.

- pickle: tuples and bytes come back as what they were
  (https://docs.celeryq.dev/en/stable/userguide/security.html#serializers).
- a prefetch multiplier of 128: "values like 50 or 150 might make sense ... say 64, or 128" for many
  short tasks (https://docs.celeryq.dev/en/stable/userguide/optimizing.html#prefetch-limits).
- a unix socket for broker and results
  (https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html).
"""

import os
from typing import Any

from celery import Celery

SOCKET = os.environ["BENCH_REDIS_SOCKET"]

app = Celery("celery_tasks", broker=f"redis+socket://{SOCKET}", backend=f"redis+socket://{SOCKET}")
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    worker_prefetch_multiplier=128,
    broker_connection_retry_on_startup=True,
)


@app.task
def no_op(value: Any) -> Any:
    """The task of every scenario: its input is its result."""
    return value
