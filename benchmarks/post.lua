-- wrk's script: posts whole prepared requests by turns. The argument is a file that lists them.

local requests = {}
local turn = 0

function init(arguments)
  for name in io.lines(arguments[1]) do
    local file = assert(io.open(name, "rb"))
    requests[#requests + 1] = file:read("*a")
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nJSON {"n": %d, "duration_us": %d, "p50_us": %d, "p90_us": %d, "p99_us": %d, "status_errors": %d, "socket_errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
