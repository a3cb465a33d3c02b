"""The `resnet` command's subcommands, one module each: `add` declares its arguments, `run` does it."""
