"""What Amazon SageMaker requires of a container: /ping and /invocations, on port 8080, which is also our default.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
Request and response are those of Hugging Face's containers on SageMaker.
"""

from fastapi import APIRouter, Request, Response

from serving.gateway.contracts.hugging_face import described, label_scores
from serving.gateway.errors import Draining, NotReady, documented
from serving.gateway.paths import INVOCATIONS, PING
from serving.gateway.schemas import Health
from serving.gateway.state import gateway_state

router = APIRouter(tags=["SageMaker"])


@router.get(PING, summary="Can it answer? As SageMaker asks", responses=documented(NotReady, Draining))
async def ping(request: Request) -> Health:
    """Same as /readyz."""
    gateway_state(request).raise_if_not_ready()
    return Health(status="ready")


@router.post(INVOCATIONS, summary="Classify as SageMaker asks", **described(INVOCATIONS))
async def invocations(request: Request) -> Response:
    """Body and answer as in `POST /hf`."""
    return await label_scores(request, None)
