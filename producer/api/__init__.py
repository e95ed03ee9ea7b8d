"""What a consumer may know of a producer: buckets, the unit's schema, the Flight protocol. numpy and pyarrow only."""
