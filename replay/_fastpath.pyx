# The door to the engine: imports, the stages in flow order, nothing else. The vocabulary is in _fastpath.pxd.
cimport cython
from libc cimport errno
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from posix.stdlib cimport posix_memalign
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from replay._linux cimport *

include "fastpath/memory.pxi"
include "fastpath/requests.pxi"
include "fastpath/histogram.pxi"
include "fastpath/blocks.pxi"
include "fastpath/fragments.pxi"
include "fastpath/decode.pxi"
include "fastpath/http1.pxi"
include "fastpath/credentials.pxi"
include "fastpath/texts.pxi"
include "fastpath/select.pxi"
include "fastpath/rewrite.pxi"
include "fastpath/rules.pxi"
include "fastpath/routes.pxi"
include "fastpath/reassembly.pxi"
include "fastpath/records.pxi"
include "fastpath/messages.pxi"
include "fastpath/window.pxi"
include "fastpath/bpf.pxi"
include "fastpath/lane.pxi"
include "fastpath/afpacket.pxi"
include "fastpath/recorder.pxi"
include "fastpath/live.pxi"
include "fastpath/ingest.pxi"
include "fastpath/pacing.pxi"
include "fastpath/reply.pxi"
include "fastpath/endpoints.pxi"
include "fastpath/marks.pxi"
include "fastpath/outcomes.pxi"
include "fastpath/connection.pxi"
include "fastpath/epoll.pxi"
include "fastpath/uring.pxi"
include "fastpath/sender.pxi"
include "fastpath/results.pxi"
include "fastpath/judge.pxi"
include "fastpath/tally.pxi"
include "fastpath/sink.pxi"
