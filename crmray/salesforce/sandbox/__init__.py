"""A local Salesforce org: a store of records and metadata that speaks SOQL, and a server that speaks the org's API."""
