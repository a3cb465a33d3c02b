"""HTTP, and only HTTP: what a request says, and how an answer looks."""
