-- The roles of the shared database. compose.yaml has its image run this once, when the volume is empty;
-- on another server, as its administrator, with both passwords in the environment:
--   createdb qsched && psql --dbname=qsched --file=deploy/roles.sql
\getenv password QSCHED_DB_PASSWORD
\getenv looking QSCHED_LOOK_PASSWORD

-- Owns its database and nothing else: who has its password runs no program on the server.
CREATE ROLE qsched LOGIN PASSWORD :'password';
ALTER DATABASE qsched OWNER TO qsched;
REVOKE ALL ON DATABASE qsched FROM PUBLIC;

-- compose's administrator goes in from within the container only.
SELECT 'ALTER ROLE postgres PASSWORD NULL' WHERE current_user = 'postgres' \gexec

-- Reads qsched's tables, those to come too, and writes nothing: for dashboard, status, report and export. (pg_read_all_data would
-- also read the hashes of all passwords.)
CREATE ROLE qsched_look LOGIN PASSWORD :'looking';
GRANT CONNECT ON DATABASE qsched TO qsched_look;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO qsched_look;
ALTER DEFAULT PRIVILEGES FOR ROLE qsched GRANT SELECT ON TABLES TO qsched_look;
