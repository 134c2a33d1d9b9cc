"""What an installation can break: these run against the installed wheel as well."""
