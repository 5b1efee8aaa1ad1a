"""Salesforce: record ids and the standard mapping of its objects to the canonical tables."""
