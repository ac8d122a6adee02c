"""The embedded task, the recipe that trained its policies, and the policies themselves.

`task` defines three-digit additions and their verifier, `tokenizer` the character vocabulary,
`pretrain` and `rlvr` the two trainings, `recipe` runs both and keeps four checkpoints, `pair` says
where these are and which one the demo calls `rl`, `sampling` turns a checkpoint into a corpus.
"""
