"""Decides when to continue reading from a connection."""

import asyncio
from collections.abc import Collection

from uvicorn.protocols.http.flow_control import FlowControl


class PipelineFlow(FlowControl):
    """Stops reading while requests wait for their turn; uvicorn would continue after each response."""

    def __init__(self, transport: asyncio.Transport, pipeline: Collection[object]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()
