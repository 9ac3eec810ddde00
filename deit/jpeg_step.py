"""Names shared by the gateway and Triton's model that decodes JPEGs and passes the pixels to another model."""

STEP = "decode_jpegs"
"""Name of the model, and of its backend."""

JPEGS = "jpegs"
"""Input, BYTES (N, 1): files."""

DECODED = "decoded"
"""Output, BOOL (N, 1): false for files that this decoder leaves to another; their probabilities are 0."""

MODEL_PARAMETER, VERSION_PARAMETER = "model", "version"
"""Parameters of a request: who gets the pixels. Its other outputs are this model's, by their names."""

LARGEST_BATCH_PARAMETER = "largest_batch"
"""Parameter of a request: images that the model takes at once."""

PREPROCESSING_PARAMETER = "preprocessing"
"""Parameter of a request: `Preprocessing.to_json()`."""
