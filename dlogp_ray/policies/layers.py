"""The decoder layers of a model: what is compiled, cast and counted one by one."""

import torch


def layer_lists(model: torch.nn.Module) -> list[list[torch.nn.Module]]:
    """The lists of modules that are in no other such list: of the decoder, of other towers."""
    lists = []
    left = [model]
    while left:
        module = left.pop()
        if isinstance(module, torch.nn.ModuleList) and len(module):
            lists.append(list(module))
        else:
            left.extend(module.children())
    return lists


def decoder_layers(body: torch.nn.Module) -> list[torch.nn.Module]:
    """The longest of a body's lists, [] where it has none."""
    return max(layer_lists(body), key=len, default=[])
