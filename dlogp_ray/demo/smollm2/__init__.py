"""The demo on a language model: SmolLM2-135M-Instruct and an adapter that RLVR made of it.

`base` fetches the model, `task` has the word problems and their verifier, `rlvr` trains the
adapter, `recipe` does that and measures both policies, `pair` says where they are, `walkthrough`
is `dlogp demo --pair smollm2`. The adapter and its record are in `adapter`.
"""
