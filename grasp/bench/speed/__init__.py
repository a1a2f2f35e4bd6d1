"""Speed and memory: each figure is measured together with what it is compared to, in one run."""
