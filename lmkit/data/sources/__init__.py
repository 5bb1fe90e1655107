"""Where documents, records, images and sounds come from."""
