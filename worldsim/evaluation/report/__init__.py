"""Reports: targets, tables, the page, films and figures."""
