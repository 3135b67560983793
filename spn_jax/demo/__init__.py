"""Serves the web page: a small server for one machine, and one page without a build step."""
