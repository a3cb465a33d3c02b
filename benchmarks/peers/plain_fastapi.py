"""A plain FastAPI endpoint: no batching, no queue, no limits; the work is done where the request arrives.

With the event loop and the HTTP parser that `uvicorn[standard]` brings. The work is done on the event loop: handing it
to a thread costs more than it gains, since the network takes all cores by itself.
"""

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.engine import Classifier, decode, port

app = FastAPI()
classifier = Classifier()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Classify the picture in the body."""
    picture = decode(await request.body())
    return Response(classifier.answers([picture])[0], media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=port(), loop="uvloop", http="httptools", access_log=False, log_level="warning")
