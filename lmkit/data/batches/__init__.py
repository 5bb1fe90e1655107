"""Rows to arrays: windows of text, packed documents, records."""
