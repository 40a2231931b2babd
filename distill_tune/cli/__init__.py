"""The command `distill-tune`: one file a command. Nothing heavy is imported until a command needs it."""
