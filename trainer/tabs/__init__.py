"""The tabs of Label Studio's Data Manager that rankings make and keep up to date."""
