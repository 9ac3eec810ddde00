"""The model repository: the folder from which Triton loads models.

    <repository>/<model>/config.pbtxt    how Triton runs the model, and which versions of it
                         labels.txt      class names in the order of the classes
                         <version>/      model.onnx or model.plan, where it came from, what the gate found, and
                                         the config.pbtxt that this version was published with

`layout` names the files, `config` reads config.pbtxt, `models` reads versions with their configurations, `publishing`
changes the repository, `candidates` sets a model's shadow or canary, `numbers` remembers the highest version numbers,
`lock` lets one writer in at a time, `doctor` finds faults, `command` is `deit models`.

All but `layout` and `lock` need Triton's schema of config.pbtxt, which is in the package tritonclient.
"""
