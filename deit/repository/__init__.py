"""The model repository: the folder from which Triton loads models.

    <repository>/<model>/config.pbtxt    how Triton runs the model, and which versions of it
                         labels.txt      class names in the order of the classes
                         <version>/      model.onnx or model.plan, where it came from, what the gate found, and
                                         the config.pbtxt that this version was published with

`layout` names the files, `config` reads config.pbtxt, `models` answers what a version is and runs with, `publishing`
changes the repository, `candidates` names what is tried on a share of a model's requests, `numbers` remembers the
highest one given, `lock` lets one writer in at a time, `doctor` finds faults, `command` is `deit models`.

All but `layout` and `lock` need Triton's schema of config.pbtxt, which the package tritonclient brings.
"""
