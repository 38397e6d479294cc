"""Conformance kits of models (`testing.models`) and of data sets (`testing.datasets`); that of strategies is
`strategies.testing`. None of them needs pytest."""
