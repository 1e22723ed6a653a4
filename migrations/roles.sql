-- Roles and databases of a new cluster: run once, as a superuser, before the first `migrate`. It needs psql 15 or later,
-- and takes the passwords from the environment. Where each database has a cluster of its own, ONLY_DATABASE says which of them (payments,
-- executor or registry) is wanted here; only the passwords of its roles are needed then.
--
-- payment_outbox owns both databases and runs the migrations; each process has a role of its own, which the migrations
-- grant what it needs and nothing else; operator reads everything, and console is what the payment service's pages for operators read and
-- ask through, in both databases. No role may enter a database that is not its own.

\set ON_ERROR_STOP on
\set only all
\getenv only ONLY_DATABASE
\getenv owner_password OWNER_PASSWORD
\getenv executor_password EXECUTOR_PASSWORD
\getenv payment_service_password PAYMENT_SERVICE_PASSWORD
\getenv relay_password RELAY_PASSWORD
\getenv operator_password OPERATOR_PASSWORD
\getenv console_password CONSOLE_PASSWORD
\getenv registry_password REGISTRY_PASSWORD
SELECT :'only' IN ('all', 'payments') AS payments, :'only' IN ('all', 'executor') AS executor,
       :'only' IN ('all', 'registry') AS registry, :'only' IN ('all', 'payments', 'executor') AS outbox \gset

\if :outbox
CREATE ROLE payment_outbox LOGIN PASSWORD :'owner_password';
CREATE ROLE relay LOGIN PASSWORD :'relay_password';
CREATE ROLE operator LOGIN PASSWORD :'operator_password';
CREATE ROLE console LOGIN PASSWORD :'console_password';
\endif

\if :payments
CREATE ROLE payment_service LOGIN PASSWORD :'payment_service_password';
CREATE DATABASE payments OWNER payment_outbox;
REVOKE CONNECT, TEMPORARY ON DATABASE payments FROM PUBLIC;
GRANT CONNECT ON DATABASE payments TO payment_service, relay, operator, console;
\endif

\if :executor
CREATE ROLE executor LOGIN PASSWORD :'executor_password';
CREATE DATABASE executor OWNER payment_outbox;
REVOKE CONNECT, TEMPORARY ON DATABASE executor FROM PUBLIC;
GRANT CONNECT ON DATABASE executor TO executor, relay, operator, console;
\endif

\if :registry
-- For the schema registry, which keeps the schemas and their ids.
CREATE ROLE registry LOGIN PASSWORD :'registry_password';
CREATE DATABASE registry OWNER registry;
REVOKE CONNECT, TEMPORARY ON DATABASE registry FROM PUBLIC;
\endif
