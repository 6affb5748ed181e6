"""One module for each thing that is measured; each offers ``rows(quick) -> list[Row]``."""
