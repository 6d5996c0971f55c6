"""From what people labelled to pixels and targets."""
