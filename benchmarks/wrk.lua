-- Posts request bodies in turn and prints what came of it as one line of JSON.
-- wrk ... -s wrk.lua URL -- CONTENT-TYPE FILE...

local requests, turn = {}, 0

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[1]
  for i = 2, #args do
    local file = assert(io.open(args[i], "rb"))
    wrk.body = file:read("*a")
    file:close()
    requests[#requests + 1] = wrk.format()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  local good = summary.requests - e.status
  print(string.format(
    '{"requests": %d, "requests_per_s": %.1f, "p50_ms": %.2f, "p99_ms": %.2f, "errors": %d}',
    good, good * 1e6 / summary.duration, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, errors))
end
