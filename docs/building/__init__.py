"""The documentation site: what the pages of docs/ do not hold is made here from the code, then Sphinx builds it all."""
